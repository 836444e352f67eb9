"""How numbers are written for people: short, with a unit, the same in the display, the curve, the page and the card."""

from __future__ import annotations

import math


def short(value: float | None) -> str:
    """Four significant digits, without trailing zeros that say nothing: ``0.8312``, ``12.5``, ``2e-4``."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def count(value: float | None) -> str:
    """A number of things: ``512``, ``1,536``, ``1.25 M``, ``8.03 B``."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= 0.9995 * size:  # what three digits round up to it
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}"


def size(num_bytes: float | None) -> str:
    """Bytes in binary units: ``512 B``, ``6.21 GiB``."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return "–"
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(num_bytes) >= 1024**power:
            return f"{num_bytes / 1024**power:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """``0.42 s``, ``42 s``, ``3:07``, ``2:03:07``, ``3 d 04 h``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 100 * 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 86400} d {whole // 3600 % 24:02d} h"


def percent(share: float | None) -> str:
    """A share of one: ``93.1 %``."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"
