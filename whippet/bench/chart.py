"""One picture of the results: a pair of bars for each comparison, ours above the other's, drawn with Pillow alone.

Comes in: results, measured now or stored. Goes out: a PNG that can be read at 900 pixels of width. Bars begin at zero
and are to scale within their pair; pairs have different units and sizes, so between them only ratios can be compared.
What has nothing beside it is told in words underneath.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageDraw

from whippet.bench.results import LESS_IS_BETTER, Result, Side, amount, gib
from whippet.report.ink import GRID, INK, QUIET, SCALE, blank, fitted, saved, write

WIDTH, MARGIN = 1200, 40
TOP, PAIR, LONE, FOOT = 116, 76, 34, 58
"""Heights of the heading, a pair, a line of what stands alone, the foot."""
LABELS, RATIOS = 300, 110
"""Widths of the columns at the left and the right of the bars."""
BAR, INSIDE = 25, 330
"""Height of a bar; room for its figures, to its right or on it."""
OURS, THEIRS = "#2563c9", "#b4bcc8"
OTHERS = {"hf": "#d6dbe3"}
"""Colours of peers that are drawn beside another one."""


@dataclass(frozen=True)
class Pair:
    """A comparison."""

    result: Result
    peer: str
    theirs: Side
    ratio: float


def pairs(results: Sequence[Result]) -> list[Pair]:
    """Where both sides have a figure."""
    return [
        Pair(result, peer, theirs, ratio)
        for result in results
        for peer, theirs in result.peers.items()
        if (ratio := result.ratio(peer)) is not None
    ]


def draw(path: Path, about: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Draw ``results`` to ``path``; ``about`` is what they depend on (``table.circumstances``)."""
    beside = pairs(results)
    paired = {id(pair.result) for pair in beside}
    alone = [result for result in results if id(result) not in paired and result.ours.value is not None]
    height = TOP + PAIR * len(beside) + (LONE * len(alone) + 24 if alone else 0) + FOOT
    image = blank(WIDTH, height)
    canvas = ImageDraw.Draw(image)
    _heading(canvas, about, list(dict.fromkeys(pair.peer for pair in beside)))
    y = float(TOP)
    for pair in beside:
        _pair(canvas, pair, y)
        y += PAIR
    if alone:
        _rule(canvas, y + 2)
        y += 24
    for result in alone:
        _alone(canvas, result, y)
        y += LONE
    _foot(canvas, about, height, bool(beside), [*(pair.result for pair in beside), *alone])
    saved(image, path)


def _heading(canvas: ImageDraw.ImageDraw, about: Mapping[str, Any], peers: Sequence[str]) -> None:
    title = f"Training on {about.get('device', 'an unknown device')}"
    write(canvas, (MARGIN, 38), fitted(canvas, title, 28, WIDTH - 2 * MARGIN), 28, INK, "lm", bold=True)
    x = float(MARGIN)
    named = _versions(about)
    for name, colour in (("whippet", OURS), *((peer, OTHERS.get(peer, THEIRS)) for peer in peers)):
        _box(canvas, (x, 70, x + 22, 86), colour)
        told = f"{name} {named[name]}" if name in named else name
        x += 30 + write(canvas, (x + 30, 78), told, 19, INK, "lm") + 34
    if peers:
        write(canvas, (WIDTH - MARGIN, 78), "times better", 17, QUIET, "rm")


def _versions(about: Mapping[str, Any]) -> dict[str, str]:
    versions = about.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    peers = versions.get("peers")
    whole = {**versions, **(peers if isinstance(peers, Mapping) else {})}
    return {name: text for name, text in whole.items() if isinstance(text, str)}


def _pair(canvas: ImageDraw.ImageDraw, pair: Pair, y: float) -> None:
    result = pair.result
    write(canvas, (MARGIN, y + 17), fitted(canvas, result.row, 20, LABELS - 12), 20, INK, "lm", bold=True)
    write(canvas, (MARGIN, y + 42), fitted(canvas, result.what, 17, LABELS - 12), 17, QUIET, "lm")
    most = max(result.ours.value or 0.0, pair.theirs.value or 0.0)
    for side, name, colour, top in (
        (result.ours, "", OURS, y + 4),
        (pair.theirs, pair.peer, OTHERS.get(pair.peer, THEIRS), y + 6 + BAR),
    ):
        _bar(canvas, result, side, name, colour, top, (side.value or 0.0) / most)
    times = f"{pair.ratio:.2f}x" if pair.ratio < 10 else f"{pair.ratio:.1f}x"
    write(canvas, (WIDTH - MARGIN, y + 5 + BAR), times, 26, INK, "rm", bold=True)


def _bar(
    canvas: ImageDraw.ImageDraw, result: Result, side: Side, name: str, colour: str, top: float, share: float
) -> None:
    left = MARGIN + LABELS
    length = share * (WIDTH - 2 * MARGIN - LABELS - RATIOS)
    _box(canvas, (left, top, left + max(length, 2.0), top + BAR), colour)
    told = _figures(result, side) + (f" · {name}" if name else "")
    on_it = length > INSIDE
    ink = ("#ffffff" if colour == OURS else INK) if on_it else INK
    write(canvas, (left + (12 if on_it else length + 10), top + BAR / 2), told, 18, ink, "lm")


def _alone(canvas: ImageDraw.ImageDraw, result: Result, y: float) -> None:
    write(canvas, (MARGIN, y + 14), fitted(canvas, result.row, 18, 150), 18, INK, "lm", bold=True)
    write(canvas, (MARGIN + 160, y + 14), fitted(canvas, result.what, 18, 330), 18, QUIET, "lm")
    told = _figures(result, result.ours) + (" (planned)" if result.ours.planned else "")
    write(canvas, (MARGIN + 500, y + 14), told, 18, INK, "lm")


def _figures(result: Result, side: Side) -> str:
    peak = "" if side.peak is None else f" · {gib(side.peak)} GiB"
    return f"{amount(side.value)} {result.unit}{peak}"


def _foot(
    canvas: ImageDraw.ImageDraw, about: Mapping[str, Any], height: int, has_pairs: bool, drawn: Sequence[Result]
) -> None:
    where = [str(about[key]) for key in ("date", "commit") if about.get(key)]
    torch = _versions(about).get("torch")
    where += [f"torch {torch}"] if torch else []
    told = "Bars are to scale within a pair. " if has_pairs else ""
    units = {result.unit for result in drawn}
    inverse = [unit for unit in LESS_IS_BETTER if unit in units]
    told += f"In {', '.join(inverse)} less is better. " if inverse else ""
    told += "GiB: peak of the GPU's memory. "
    text = fitted(canvas, told + " · ".join(where), 15, WIDTH - 2 * MARGIN)
    write(canvas, (MARGIN, height - 26), text, 15, QUIET, "lm")


def _rule(canvas: ImageDraw.ImageDraw, y: float) -> None:
    canvas.line([(SCALE * MARGIN, SCALE * y), (SCALE * (WIDTH - MARGIN), SCALE * y)], GRID, SCALE)


def _box(canvas: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], colour: str) -> None:
    canvas.rectangle([SCALE * corner for corner in corners], fill=colour)
