"""Numbers as people read them, ticks that are round, lines that are smooth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from whippet.report.figures import count, duration, percent, short, size
from whippet.report.series import Series, series, smoothed, span, thinned, tick_labels, ticks


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (short(0.83124), "0.8312"), (short(2e-4), "2e-4"), (short(0), "0"), (short(12345.6), "12,346"),
        (short(-3.5e-7), "-3.5e-7"), (short(1.25e7), "1.25e7"), (short(None), "–"), (short(math.nan), "–"),
        (count(512), "512"), (count(1536), "1,536"), (count(1.25e6), "1.25 M"), (count(8.03e9), "8.03 B"),
        (count(999.9e6), "1 B"),
        (size(512), "512 B"), (size(6.21 * 2**30), "6.21 GiB"), (size(None), "–"),
        (duration(0.42), "0.42 s"), (duration(42), "42 s"), (duration(187), "3:07"), (duration(59.7), "1:00"),
        (duration(7387), "2:03:07"), (duration(100 * 3600), "4 d 04 h"), (percent(0.9312), "93.1 %"),
    ],
)  # fmt: skip
def test_figures(said: str, wanted: str) -> None:
    assert said == wanted


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 300, ["0", "50", "100", "150", "200", "250", "300"]),
        (0.61, 3.6, ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5"]),
        (0, 2e-4, ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        (1.2345, 1.2349, ["1.2345", "1.2346", "1.2347", "1.2348", "1.2349"]),
        (0, 100_000, ["0", "20k", "40k", "60k", "80k", "100k"]),
        (0, 2_400_000, ["0", "0.5M", "1M", "1.5M", "2M"]),
    ],
)
def test_ticks_are_round_and_labelled_alike(low: float, high: float, labels: list[str]) -> None:
    assert tick_labels(ticks(low, high, about=6)) == labels


def test_ticks_stay_within_any_range() -> None:
    random = np.random.default_rng(0)
    for _ in range(500):
        low = float(random.normal() * 10.0 ** random.integers(-8, 8))
        high = low + float(10.0 ** random.uniform(-6, 9))
        found = ticks(low, high)
        slack = 1e-6 * (high - low) + 1e-9 * abs(low)
        assert 2 <= len(found) <= 12 and found == sorted(found)
        assert found[0] >= low - slack and found[-1] <= high + slack
    assert ticks(1.0, 1.0) == [1.0]


def test_series_skips_what_is_not_finite() -> None:
    found = series([{"step": 1, "a": 2.0}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": 5}], "a")
    assert found.x.tolist() == [1, 4] and found.y.tolist() == [2, 5]
    assert len(series([], "a")) == 0


def test_smoothing_keeps_a_constant_and_calms_noise() -> None:
    x = np.arange(200.0)
    assert smoothed(Series(x, np.full(200, 3.0)), 5).y == pytest.approx(np.full(200, 3.0))
    noise = np.random.default_rng(0).normal(size=200)
    assert smoothed(Series(x, noise), 5).y.std() < 0.4 * noise.std()
    line = smoothed(Series(x, x), 3).y
    assert line[50:150] == pytest.approx(x[50:150]), "a centred window does not lag"


def test_thinning_keeps_the_mean() -> None:
    line = Series(np.arange(1003.0), np.random.default_rng(0).normal(size=1003))
    few = thinned(line, 100)
    assert len(few) == 100 and few.y.mean() == pytest.approx(line.y.mean(), abs=0.01)
    assert thinned(line, 2000) is line


def test_an_outlier_does_not_spoil_the_range() -> None:
    y = np.linspace(2.0, 1.0, 1000)
    y[7] = 1e6
    low, high = span(Series(np.arange(1000.0), y))
    assert 0.8 < low < 1.0 and 2.0 <= high < 2.2
    few = span(Series(np.arange(5.0), np.array([9.0, 3, 2, 1, 1])))
    assert few[1] >= 9, "of few values none is an outlier"
    assert span() == (0.0, 1.0)
    low, high = span(Series.of([1], [0.0]))
    assert low < high
