"""The chart: a picture of the right size whose bars have the right lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whippet.bench import chart
from whippet.bench.chart import BAR, LABELS, MARGIN, OURS, RATIOS, THEIRS, TOP, WIDTH, draw, pairs
from whippet.bench.results import Result, Side

ABOUT = {"device": "NVIDIA H200", "date": "2026-11-25", "versions": {"torch": "2.11", "peers": {"unsloth": "1"}}}
FULL = WIDTH - 2 * MARGIN - LABELS - RATIOS


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size[0] == WIDTH
        return np.asarray(image.convert("RGB")).astype(int)


def bar(image: np.ndarray, top: int, colour: str) -> int:
    """Length of the bar whose upper edge is at ``top``, below its letters."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    line = image[top + BAR - 2, MARGIN + LABELS :]
    return int((np.abs(line - wanted).sum(-1) < 12).sum())


def test_bars_are_to_scale(tmp_path: Path) -> None:
    rate = Result("a", "8b", "tokens/s", Side(1000.0), {"unsloth": Side(400.0)})
    draw(tmp_path / "c.png", ABOUT, [rate])
    image = pixels(tmp_path / "c.png")
    assert bar(image, TOP + 4, OURS) == pytest.approx(FULL, abs=3)
    assert bar(image, TOP + 6 + BAR, THEIRS) == pytest.approx(0.4 * FULL, abs=3)
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_less_time_is_a_shorter_bar(tmp_path: Path) -> None:
    cold = Result("cold", "8b", "s", Side(10.0), {"unsloth": Side(50.0)})
    draw(tmp_path / "c.png", ABOUT, [cold])
    assert bar(pixels(tmp_path / "c.png"), TOP + 4, OURS) == pytest.approx(FULL / 5, abs=3)
    assert pairs([cold])[0].ratio == 5.0


@pytest.mark.parametrize(
    "results",
    [
        [],
        [Result("a" * 60, "w" * 80, "tokens/s", Side(1.0))],
        [Result("a", "b", "tokens/s", Side(None, error="no"), {"hf": Side(1.0)})],
        [Result("a", "b", "tokens", Side(1e6, 2**34, planned=True))] * 12,
        [Result("a", "b", "s", Side(1e-9), {"unsloth": Side(1e9, 2**40), "hf": Side(None, error="x")})],
    ],
    ids=["nothing", "long names", "failed", "alone", "extremes"],
)
def test_any_results_make_a_picture(tmp_path: Path, results: list[Result]) -> None:
    for about in ({}, ABOUT | {"versions": None}):
        draw(tmp_path / "c.png", about, results)
        pixels(tmp_path / "c.png")


def test_less_is_better_is_said_of_seconds_that_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def write(canvas: object, at: object, text: str, *_: object, **__: object) -> float:
        told.append(text)
        return 0.0

    monkeypatch.setattr(chart, "write", write)
    rate = Result("a", "8b", "tokens/s", Side(1000.0), {"unsloth": Side(400.0)})
    beside, alone, failed = (
        Result("cold", "8b", "s", Side(10.0), {"unsloth": Side(50.0)}),
        Result("cold", "8b", "s", Side(10.0)),
        Result("cold", "8b", "s", Side(None, error="no")),
    )
    for results, said in (([rate], False), ([rate, failed], False), ([rate, alone], True), ([beside], True)):
        told.clear()
        draw(tmp_path / "c.png", ABOUT, results)
        assert any("In s less is better." in text for text in told) is said
        assert any("GiB: peak" in text for text in told)
