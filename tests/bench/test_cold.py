"""Cold starts: a real ``whippet finetune`` in a process of its own, until its first step is logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whippet.bench import cold
from whippet.bench.child import Ended
from whippet.bench.cold import write_texts
from whippet.demo import ASSETS


def test_the_records_are_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_texts(tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert all(len(json.loads(line)["text"]) > 100 for line in (tmp_path / "a").read_text().splitlines())


def test_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cold.KEYS, "train.tokens_per_step", "512")
    write_texts(tmp_path / "texts.jsonl")
    side = cold._start(ASSETS / "tiny", "cpu", tmp_path, "empty", 100.0)
    assert side.error == "" and side.value is not None and side.value > side.details["step_s"] > 0
    assert 300 < side.details["tokens"] < 700 and side.peak is None
    assert (tmp_path / "caches").is_dir()


def test_what_python_compiled_is_kept_between_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    given = []

    def child(command: list[str], *, env: dict[str, str], **_: object) -> Ended:
        given.append(env)
        return Ended(tuple(command), 1, "", "", 0.0, 1.0, False)

    monkeypatch.setattr(cold, "run_child", child)
    cold.cold_starts(ASSETS / "tiny", "cpu", 1.0)
    assert len(given) == 3 and all("PYTHONDONTWRITEBYTECODE" not in env and env["PATH"] for env in given)


def test_starts_that_fail_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "IMPORTS", "import time; print(time.time())")
    failed = cold._start(tmp_path / "absent", "cpu", tmp_path, "empty", 100.0)
    assert "absent" in failed.error and failed.failed
    imported = cold.import_time(100.0)
    assert imported.value is not None and 0 < imported.value < 10
    monkeypatch.setattr(cold, "IMPORTS", "import time; print('a warning'); print(time.time())")
    assert cold.import_time(100.0).value is not None
    for code, told in (("print('1.5\\nlate')", "'late'"), ("pass", "''")):
        monkeypatch.setattr(cold, "IMPORTS", code)
        side = cold.import_time(100.0)
        assert side.failed and side.value is None and told in side.error
    monkeypatch.setattr(cold, "IMPORTS", "import absent")
    assert "ModuleNotFoundError" in cold.import_time(100.0).error
