"""Colours, lines and words of the pictures that Pillow draws.

Pictures are drawn ``SCALE`` times as large and scaled down, because Pillow's lines have no smooth edges of their own.
Places and sizes are given in pixels of the finished picture, but for the points of ``line`` and ``dot``.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
PAPER, INK, QUIET, GRID = "#ffffff", "#1c2430", "#6b7585", "#e8ebf0"


def blank(width: int, height: int) -> Image.Image:
    """An empty picture, to be drawn on and ``saved``."""
    return Image.new("RGB", (width * SCALE, height * SCALE), PAPER)


def saved(image: Image.Image, path: Path) -> None:
    """Scale ``image`` down and write it, whole or not at all."""
    small = image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS)
    aside = path.with_name(f".{path.name}.partial")
    small.save(aside, format="PNG", optimize=True)
    aside.replace(path)


def line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: str, width: float) -> None:
    if len(points) > 1:
        draw.line(points, fill=colour, width=round(width * SCALE), joint="curve")


def dot(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour: str) -> None:
    draw.circle(centre, radius * SCALE, fill=colour)


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    anchor: str,
    *,
    bold: bool = False,
) -> float:
    """Write ``text`` and return its width. Pillow's own font has one weight: bold is a thin outline in its colour."""
    font = ImageFont.load_default(size * SCALE)
    outline = 0.5 if bold else 0.0
    draw.text((at[0] * SCALE, at[1] * SCALE), text, colour, font, anchor, stroke_width=outline * SCALE)
    return float(draw.textlength(text, font)) / SCALE


def fitted(draw: ImageDraw.ImageDraw, text: str, size: int, width: float) -> str:
    """``text``, cut with an ellipsis if it is wider than ``width``."""
    font = ImageFont.load_default(size * SCALE)
    if draw.textlength(text, font) <= width * SCALE:
        return text
    while text and draw.textlength(text + "…", font) > width * SCALE:
        text = text[:-1]
    return text.rstrip() + "…"
