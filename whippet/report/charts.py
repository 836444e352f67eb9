"""Charts for the run's page: lines as inline SVG that stretches, labels as text that does not.

Comes in: series. Goes out: HTML. The drawing's coordinates run from 0 to 1000 both ways whatever its size on the
screen; strokes keep their width, and ticks are placed in per cent. ``page_parts.SCRIPT`` adds a reading under the
pointer from the JSON that each chart carries; without it the chart is whole all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from whippet.report.figures import short
from whippet.report.series import Series, natural_sigma, smoothed, span, thinned, tick_labels, ticks

POINTS = 700
"""Points of a line in the page: more than a line on a screen can show apart, and 30 KB."""


@dataclass(frozen=True)
class Line:
    """A series as it is drawn: ``style`` is a class of the page's style sheet."""

    name: str
    points: Series
    style: str = "main"
    smooth: bool = False
    """Draw the values faintly and their smoothed course over them."""
    marks: bool = False
    """Draw each value as a dot too."""

    @property
    def last(self) -> float:
        """Where the line ends: of a smoothed one its course, since a single step is noise."""
        return float(self.course.y[-1])

    @property
    def course(self) -> Series:
        """The line that is drawn boldly."""
        return smoothed(self.points, natural_sigma(len(self.points))) if self.smooth else self.points


def chart(title: str, lines: Sequence[Line], *, last_step: float, tall: bool = False, from_zero: bool = False) -> str:
    """A figure of ``lines`` over steps 0 to ``last_step``; empty text if no line has two points or a mark."""
    drawn = [line for line in lines if len(line.points) > (0 if line.marks else 1)]
    if not drawn:
        return ""
    low, high = span(*(line.points for line in drawn))
    low = min(0.0, low) if from_zero else low
    scale = _Scale(max(last_step, 1.0), low, high)
    values = ticks(low, high, about=5 if tall else 4)
    steps = [value for value in ticks(0, scale.last, about=6) if value == int(value)]
    grid = "".join(f'<path class="grid" d="M0 {scale.y(value)}H1000"/>' for value in values)
    strokes = "".join(_strokes(line, scale) for line in drawn)
    return (
        f'<figure class="chart{" tall" if tall else ""}"><figcaption>{escape(title)}{_legend(drawn)}</figcaption>'
        f'<div class="plot" tabindex="0" role="img" aria-label="{escape(_spoken(title, drawn), quote=True)}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{grid}{strokes}</svg>'
        + _ticks("y", ((scale.y(value) / 10, label) for value, label in zip(values, tick_labels(values), strict=True)))
        + _ticks("x", ((scale.x(value) / 10, label) for value, label in zip(steps, tick_labels(steps), strict=True)))
        + f'<script type="application/json">{_reading(drawn, scale)}</script></div></figure>'
    )


@dataclass(frozen=True)
class _Scale:
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return round(1000 * step / self.last, 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(1000 * (1 - min(1.0, max(0.0, share))), 1)


def _strokes(line: Line, scale: _Scale) -> str:
    points = thinned(line.points, POINTS)
    if not line.smooth:
        dots = "".join(f"M{scale.x(x)} {scale.y(y)}h.01" for x, y in _pairs(points)) if line.marks else ""
        marks = f'<path class="dots {line.style}" d="{dots}"/>' if dots else ""
        return f'<path class="{line.style}" d="{_path(points, scale)}"/>{marks}'
    course = thinned(line.course, POINTS)
    raw = f'<path class="raw {line.style}" d="{_path(points, scale)}"/>'
    return f'{raw}<path class="{line.style}" d="{_path(course, scale)}"/>'


def _path(points: Series, scale: _Scale) -> str:
    return "M" + "L".join(f"{scale.x(x)} {scale.y(y)}" for x, y in _pairs(points))


def _pairs(points: Series) -> list[tuple[float, float]]:
    return list(zip(points.x.tolist(), points.y.tolist(), strict=True))


def _legend(lines: Sequence[Line]) -> str:
    last = "".join(
        f'<span class="key {line.style}">{escape(line.name)} <b>{short(line.last)}</b></span>' for line in lines
    )
    return f'<span class="legend">{last}</span>'


def _ticks(axis: str, places: Iterable[tuple[float, str]]) -> str:
    side = "left" if axis == "x" else "top"
    return "".join(f'<span class="{axis}" style="{side}:{at:g}%">{label}</span>' for at, label in places)


def _reading(lines: Sequence[Line], scale: _Scale) -> str:
    """What the pointer reads: per line its name, style, steps, values and heights. '<' cannot end the element."""
    told = []
    for line in lines:
        points = thinned(line.points, POINTS)
        told.append(
            {
                "name": line.name,
                "style": line.style,
                "step": [round(x) for x in points.x.tolist()],
                "value": [short(y) for y in points.y.tolist()],
                "at": [scale.y(y) for y in points.y.tolist()],
            }
        )
    return json.dumps({"last": scale.last, "lines": told}, separators=(",", ":")).replace("<", "\\u003c")


def _spoken(title: str, lines: Sequence[Line]) -> str:
    ends = ", ".join(f"{line.name} from {short(line.points.y[0])} to {short(line.last)}" for line in lines)
    return f"{title}: {ends}"
