"""loss.png: a picture of the right size that shows the loss, the evaluations and the learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_runs import records
from PIL import Image

from whippet.report.plot import EVALUATED, HEIGHT, RATE_FILL, SMOOTH, WIDTH, loss_png


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (WIDTH, HEIGHT)
        return np.asarray(image.convert("RGB")).astype(int)


def share(image: np.ndarray, colour: str) -> float:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(image - wanted).sum(-1) < 12).mean())


def test_it_draws_all_three(tmp_path: Path) -> None:
    loss_png(records(), tmp_path / "loss.png", "a run")
    image = pixels(tmp_path / "loss.png")
    assert share(image, SMOOTH) > 5e-4 and share(image, EVALUATED) > 5e-4 and share(image, RATE_FILL) > 5e-3
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_a_falling_loss_falls(tmp_path: Path) -> None:
    loss_png([{"step": s, "loss": 3 - s / 50} for s in range(1, 101)], tmp_path / "l.png", "x")
    image = pixels(tmp_path / "l.png")[112:, 84:-44]
    blue = np.abs(image - [int(SMOOTH[i : i + 2], 16) for i in (1, 3, 5)]).sum(-1) < 60
    heights = [np.flatnonzero(blue[:, column]).mean() for column in (100, 500, 900)]
    assert heights == sorted(heights) and heights[2] - heights[0] > 200


@pytest.mark.parametrize(
    "given",
    [
        [],
        [{"step": 1, "loss": 2.0}],
        [{"step": 0, "eval_loss": 2.0}],
        [{"step": 1, "loss": None}, {"step": 2, "loss": 1e30}, {"step": 3, "loss": -1e30}],
        [{"step": s, "loss": 1.0, "learning_rate": 0.0} for s in range(1, 4)],
        [{"step": s, "loss": float(s % 7)} for s in range(1, 20_000)],
    ],
    ids=["nothing", "one step", "evaluated only", "extremes", "flat", "long"],
)
def test_any_records_make_a_picture(tmp_path: Path, given: list[dict[str, object]]) -> None:
    loss_png(given, tmp_path / "l.png", "a title that is far too long for the picture " * 5 + "日本")
    pixels(tmp_path / "l.png")


def test_it_names_nothing_of_the_machine(tmp_path: Path) -> None:
    loss_png(records(), tmp_path / "l.png", "x")
    with Image.open(tmp_path / "l.png") as image:
        assert image.info == {}
