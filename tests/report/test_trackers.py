"""Trackers: an extra each; numbers arrive under dotted names at their step."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from whippet.errors import MissingExtra, UsageError
from whippet.report.trackers import flat, open_tracker

RECORD = {"step": 7, "loss": 1.5, "bad": float("nan"), "time": {"step_s": 0.25}, "words": "x"}


def test_flat() -> None:
    assert flat(RECORD) == {"loss": 1.5, "time.step_s": 0.25}


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown tracker 'mlflow'; known: tensorboard, wandb, trackio"):
        open_tracker("mlflow", tmp_path, {})


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "track"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_missing_extra_gives_its_pip_command(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'whippet\[{extra}\]'"):
        open_tracker(name, tmp_path, {})


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra 'track'")
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    tracker = open_tracker("tensorboard", tmp_path, {"lora": {"r": 4}})
    tracker.log(RECORD)
    tracker.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "time/step_s"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 1.5)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_online_trackers_get_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    fake = types.ModuleType(name)
    fake.log = lambda values, step: calls.append(("log", (values, step)))  # type: ignore[attr-defined]
    fake.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]

    def init(**options: Any) -> types.ModuleType:
        calls.append(("init", options))
        return fake

    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, fake)
    tracker = open_tracker(name, tmp_path / "my-run", {"a": 1})
    tracker.log(RECORD)
    tracker.close()
    assert calls[0][1]["name"] == "my-run" and calls[0][1]["config"] == {"a": 1}
    assert calls[1:] == [("log", ({"loss": 1.5, "time.step_s": 0.25}, 7)), ("finish", None)]
