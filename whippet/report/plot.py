"""``loss.png``: the course of a run on one picture, drawn with Pillow alone.

Comes in: the records of ``metrics.py``. Goes out: a PNG of 1200 × 675 pixels: every step's loss faintly, its smoothed
course over it, evaluations as points, and the learning rate on a strip beneath.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageDraw

from whippet.report.figures import short
from whippet.report.ink import GRID, INK, PAPER, QUIET, SCALE, blank, dot, fitted, line, saved, write
from whippet.report.series import Series, natural_sigma, series, smoothed, span, thinned, tick_labels, ticks

WIDTH, HEIGHT = 1200, 675
POINTS = 600
"""Points of a drawn line: about one for two pixels."""
RAW, SMOOTH, EVALUATED, RATE, RATE_FILL = "#c3d5f5", "#2563c9", "#e0591f", "#8d98a8", "#eef1f5"


@dataclass(frozen=True)
class Frame:
    """A rectangle of the picture and the ranges it shows; ``at`` turns values into pixels of the large drawing."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        up = min(1.0, max(0.0, up))
        width, height = self.right - self.left, self.bottom - self.top
        return SCALE * (self.left + across * width), SCALE * (self.bottom - up * height)

    def points(self, line: Series) -> list[tuple[float, float]]:
        return [self.at(x, y) for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)]


def loss_png(records: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the records' curve to ``path``; a run without a step yet gives an empty chart that says so."""
    image = blank(WIDTH, HEIGHT)
    draw = ImageDraw.Draw(image)
    loss, evaluated, rate = (series(records, key) for key in ("loss", "eval_loss", "learning_rate"))
    course = smoothed(loss, natural_sigma(len(loss)))
    last = max((float(line.x[-1]) for line in (loss, evaluated) if len(line)), default=1.0)
    steps = (min(0.0, last - 1), max(last, 1.0))
    has_rate = len(rate) > 1
    bottom = HEIGHT - (138 if has_rate else 62)
    frame = Frame(84, 112, WIDTH - 44, bottom, steps, span(loss, course, evaluated))
    _heading(draw, title, course, evaluated)
    _axes(draw, frame)
    if has_rate:
        _strip(draw, rate, Frame(84, HEIGHT - 116, WIDTH - 44, HEIGHT - 62, steps, (0.0, float(rate.y.max()) or 1.0)))
    _steps(draw, frame)
    if len(loss) or len(evaluated):
        _curve(draw, frame, loss, course, evaluated)
    else:
        write(draw, (WIDTH / 2, (112 + bottom) / 2), "no step yet", 20, QUIET, "mm")
    saved(image, path)


def _curve(draw: ImageDraw.ImageDraw, frame: Frame, loss: Series, course: Series, evaluated: Series) -> None:
    line(draw, frame.points(thinned(loss, POINTS)), RAW, 1.5)
    line(draw, frame.points(thinned(course, POINTS)), SMOOTH, 3)
    marks = frame.points(thinned(evaluated, POINTS // 4))
    line(draw, marks, EVALUATED, 2)
    for mark in marks:
        dot(draw, mark, 5.5, PAPER)
        dot(draw, mark, 4, EVALUATED)
    if len(course):
        end = frame.points(course)[-1]
        dot(draw, end, 6, PAPER)
        dot(draw, end, 4.5, SMOOTH)


def _heading(draw: ImageDraw.ImageDraw, title: str, course: Series, evaluated: Series) -> None:
    write(draw, (44, 34), fitted(draw, title, 27, WIDTH - 88), 27, INK, "lm", bold=True)
    x = 44.0
    told = [("loss", SMOOTH, f"{course.y[-1]:.4f}" if len(course) else "")]
    if len(evaluated):
        told.append(("evaluation", EVALUATED, f"{evaluated.y[-1]:.4f}"))
    for name, colour, value in told:
        line(draw, [(SCALE * x, SCALE * 74), (SCALE * (x + 22), SCALE * 74)], colour, 3)
        x += 30
        x += write(draw, (x, 74), name, 17, QUIET, "lm") + 8
        x += write(draw, (x, 74), value, 17, INK, "lm", bold=True) + 32


def _axes(draw: ImageDraw.ImageDraw, frame: Frame) -> None:
    values = ticks(*frame.y, about=6)
    for value, label in zip(values, tick_labels(values), strict=True):
        _, y = frame.at(0, value)
        draw.line([(SCALE * frame.left, y), (SCALE * frame.right, y)], GRID, SCALE)
        write(draw, (frame.left - 12, y / SCALE), label, 16, QUIET, "rm")


def _steps(draw: ImageDraw.ImageDraw, frame: Frame) -> None:
    values = [value for value in ticks(*frame.x, about=8) if value == int(value)]
    for value, label in zip(values, tick_labels(values), strict=True):
        x, _ = frame.at(value, 0)
        write(draw, (x / SCALE, HEIGHT - 40), label, 16, QUIET, "mm")
    write(draw, (frame.right, HEIGHT - 17), "step", 14, QUIET, "rm")


def _strip(draw: ImageDraw.ImageDraw, rate: Series, frame: Frame) -> None:
    points = frame.points(thinned(rate, POINTS))
    floor = SCALE * frame.bottom
    draw.polygon([(points[0][0], floor), *points, (points[-1][0], floor)], RATE_FILL)
    line(draw, points, RATE, 1.5)
    draw.line([(SCALE * frame.left, floor), (SCALE * frame.right, floor)], GRID, SCALE)
    write(draw, (frame.left - 12, frame.top + 1), short(frame.y[1]), 14, QUIET, "rm")
    write(draw, (frame.right, frame.top - 1), "learning rate", 14, QUIET, "rm")
