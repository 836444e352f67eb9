"""From records to what a chart draws: points, a smoothed line, round ticks, a range that an outlier cannot spoil."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whippet.report.metrics import value_of

Floats = NDArray[np.float64]
UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Series:
    """Points of one quantity: ``x`` (steps, rising) and ``y``, both fp64 ``[n]``."""

    x: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.x)

    @staticmethod
    def of(x: Sequence[float], y: Sequence[float]) -> Series:
        """From plain numbers."""
        return Series(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))


def series(records: Sequence[Mapping[str, Any]], key: str) -> Series:
    """Every finite value of ``key``, against its step."""
    pairs = [(float(record["step"]), value) for record in records if (value := value_of(record, key)) is not None]
    return Series.of([step for step, _ in pairs], [value for _, value in pairs])


def thinned(line: Series, most: int) -> Series:
    """At most ``most`` points: means of runs of neighbours, for a chart that has no more pixels than that."""
    if len(line) <= most:
        return line
    borders = np.linspace(0, len(line), most + 1).astype(np.int64)
    counts = np.diff(borders)
    x, y = (np.add.reduceat(values, borders[:-1]) / counts for values in (line.x, line.y))
    return Series(x, y)


def smoothed(line: Series, sigma: float) -> Series:
    """The line under a centred Gaussian window of ``sigma`` points, renormalised at the ends; it lags nowhere."""
    if len(line) < 3 or sigma <= 0:
        return line
    reach = min(len(line) - 1, math.ceil(3 * sigma))
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    middle = slice(reach, reach + len(line))
    weights = np.convolve(np.ones(len(line)), window)[middle]
    return Series(line.x, np.convolve(line.y, window)[middle] / weights)


def natural_sigma(points: int) -> float:
    """A window that calms noise yet keeps the shape: a sixtieth of the line, at least one point."""
    return max(1.0, points / 60)


def span(*lines: Series, trim: float = 0.01, margin: float = 0.06) -> tuple[float, float]:
    """The range to show: all but the outermost ``trim`` of each end's values, widened a little, never empty."""
    shown = [line.y for line in lines if len(line)]
    if not shown:
        return 0.0, 1.0
    low = min(float(np.quantile(values, trim, method="lower")) for values in shown)
    high = max(float(np.quantile(values, 1 - trim, method="higher")) for values in shown)
    extra = (high - low) * margin or max(abs(high) * 0.1, 1e-9)
    floor = 0.0 if low >= 0 else -math.inf
    return max(floor, low - extra), high + extra


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within ``[low, high]``, about so many: steps of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / max(1, about)
    if not math.isfinite(rough) or rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks in words, all with the same number of decimals."""
    if not values:
        return []
    largest = max(abs(value) for value in values)
    if largest >= 1e5:
        unit, letter = next((unit, letter) for unit, letter in UNITS if largest >= unit)
        return [f"{value / unit:g}{letter}" if value else "0" for value in values]
    if 0 < largest < 1e-3:
        return [_scientific(value) for value in values]
    gap = min((after - before for before, after in pairwise(values)), default=largest or 1.0)
    decimals = max(0, min(8, -math.floor(math.log10(gap) + 1e-9)))
    if round(gap, decimals) != round(gap, decimals + 1):
        decimals += 1
    return [f"{value:,.{decimals}f}" for value in values]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"
