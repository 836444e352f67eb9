"""The table's lines, ratios and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whippet.bench.results import COLUMNS, HEAD, Result, Side, amount, as_json, gib, read_results
from whippet.errors import UsageError

GIB = 2**30
STEP = Result("nf4", "8b nf4 2x2048", "tokens/s", Side(20_000.0, 18 * GIB), {"unsloth": Side(10_000.0, 21 * GIB)})


def test_more_is_better_of_rates_and_less_of_seconds() -> None:
    assert STEP.ratio("unsloth") == 2.0
    assert Result("cold", "8b", "s", Side(10.0), {"hf": Side(50.0)}).ratio("hf") == 5.0
    assert Result("cold", "8b", "s", Side(None, error="x"), {"hf": Side(50.0)}).ratio("hf") is None


def test_lines() -> None:
    assert len(HEAD) <= COLUMNS
    assert str(STEP).split() == ["nf4", "8b", "nf4", "2x2048", "tok/s", "20,000", "10,000", "2.00x", "18.0/21.0"]
    alone = Result("context", "8b nf4 r32 in 16GB", "tokens", Side(98_691.0, 15 * GIB, planned=True))
    assert str(alone).split()[-3:] == ["98,691", "–", "~15.0"]
    # Columns stand below their heads.
    assert str(STEP).index("20,000") + 6 == HEAD.index("ours") + 4
    assert str(STEP).index("18.0/21.0") + 9 == HEAD.index("GiB") + 3


def test_errors_are_told_below_and_no_line_is_too_long() -> None:
    peers = {"unsloth": Side(None, error="ended with 1: " + "a long story " * 20), "hf": Side(12_345_678.0, 170 * GIB)}
    row = Result("records-packed", "8b nf4 16,384 tokens", "examples/s", Side(123_456_789.0, 180 * GIB), peers)
    lines = str(row).splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert "beside hf" in lines[1] and lines[2].startswith("  unsloth: ended with 1: a long story")


@pytest.mark.parametrize(
    ("value", "told"), [(None, "–"), (7.224, "7.22"), (110.4, "110"), (20000.4, "20,000"), (2e8, "200.0M")]
)
def test_amounts(value: float | None, told: str) -> None:
    assert amount(value) == told


def test_peaks_have_three_digits() -> None:
    assert [gib(round(x * GIB)) for x in (6.64, 18.38, 141.2)] == ["6.64", "18.4", "141"] and gib(None) == "–"


def test_json_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    odd = Result("x", "y", "s", Side(float("nan"), details={"loss": float("inf")}), {"hf": Side(None, error="no")})
    path.write_text(json.dumps(as_json({"device": "d"}, [STEP, odd]), allow_nan=False))
    about, results = read_results(path)
    assert about["device"] == "d" and about["rows"][0]["ratio"] == {"unsloth": 2.0}
    assert results[0] == STEP and results[1].ours.value is None and results[1].peers["hf"].failed


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": [{"row": "x"}]}', '{"rows": 3}', "x"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UsageError):
        read_results(tmp_path / "b.json")
    with pytest.raises(UsageError):
        read_results(tmp_path / "absent.json")
