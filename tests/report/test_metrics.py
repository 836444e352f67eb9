"""metrics.jsonl: valid JSON on every line, truncated for resume, tolerant of a crash's half line only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whippet.errors import UsageError
from whippet.report.metrics import MetricsLog, read_metrics, value_of


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    given = [{"step": 1, "loss": 2.5, "time": {"step_s": 0.1}}, {"step": 1, "eval_loss": 3}, {"step": 2, "loss": 2.25}]
    for record in given:
        log.append(record)
    assert read_metrics(log.path) == given


def test_each_line_is_visible_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 1})
    assert log.path.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_null_and_the_line_valid_json(tmp_path: Path, value: float) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 1, "loss": value, "time": {"eta_s": value}, "list": [value, 1.0]})
    line = log.path.read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "loss": None, "time": {"eta_s": None}, "list": [None, 1.0],
    }  # fmt: skip


def test_resume_forgets_later_steps_and_a_cut_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in range(1, 6):
        log.append({"step": step, "loss": 0.1 * step})
    before = log.path.read_bytes().split(b"\n")
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [record["step"] for record in read_metrics(log.path)] == [1, 2, 3, 4, 5]
    log.truncate_after(3)
    log.append({"step": 4, "loss": 9})
    assert [record["loss"] for record in read_metrics(log.path)] == pytest.approx([0.1, 0.2, 0.3, 9])
    assert log.path.read_bytes().split(b"\n")[:3] == before[:3]
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_truncating_nothing_is_fine(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "none.jsonl").truncate_after(3)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "2"}', '{"step": true}', "[" * 100_000])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"m\.jsonl:2: "):
        read_metrics(path)


def test_values_are_found_by_dotted_names() -> None:
    record = {"step": 3, "time": {"mfu": 0.5}, "bad": None, "flag": True, "inf": float("inf"), "text": "1"}
    assert value_of(record, "time.mfu") == 0.5 and value_of(record, "step") == 3
    assert all(value_of(record, key) is None for key in ("bad", "flag", "inf", "text", "none", "time.none", "step.x"))
