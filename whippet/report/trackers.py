"""Metrics to TensorBoard, Weights & Biases or trackio: each an extra, each only if the recipe names it.

Comes in: the records of ``metrics.py``. Goes out: what the tracker keeps, under the run's folder where it can.
wandb and trackio may open connections, with whatever account their own settings name; TensorBoard never does.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from whippet.errors import MissingExtra, UsageError
from whippet.report.metrics import value_of

Config = Mapping[str, Any]


class Tracker(Protocol):
    """What ``open_tracker`` gives."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the record's numbers, at its step."""

    def close(self) -> None:
        """Send what waits."""


def open_tracker(name: str, run_folder: Path, config: Config) -> Tracker:
    """Start the tracker called ``tensorboard``, ``wandb`` or ``trackio``; ``config`` is the recipe as plain values.

    Raises MissingExtra if its package is absent, UsageError for another name.
    """
    if name not in TRACKERS:
        raise UsageError(f"train.track: unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
    return TRACKERS[name](run_folder, config)


def flat(record: Mapping[str, Any]) -> dict[str, float]:
    """The record's finite numbers, by dotted names (``time.step_s``), without the step."""
    found = {key: value_of(record, key) for key in _names(record) if key != "step"}
    return {key: value for key, value in found.items() if value is not None}


class _TensorBoard:
    def __init__(self, run_folder: Path, config: Config) -> None:
        _module("tensorboard", "track", "train.track = ['tensorboard']")
        # torch's writer, because tensorboard's own package can read event files but has no public way to write them.
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(run_folder / "tensorboard"))
        self._writer.add_text("recipe", f"```json\n{json.dumps(config, indent=2, default=str)}\n```")

    def log(self, record: Mapping[str, Any]) -> None:
        for key, value in flat(record).items():
            self._writer.add_scalar(key.replace(".", "/"), value, record["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run_folder: Path, config: Config) -> None:
        wandb = _module("wandb", "wandb", "train.track = ['wandb']")
        self._run = wandb.init(
            project="whippet", name=run_folder.name, dir=str(run_folder), config=dict(config), resume="allow"
        )

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(flat(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, run_folder: Path, config: Config) -> None:
        self._trackio = _module("trackio", "trackio", "train.track = ['trackio']")
        self._trackio.init(project="whippet", name=run_folder.name, config=dict(config), resume="allow")

    def log(self, record: Mapping[str, Any]) -> None:
        self._trackio.log(flat(record), step=record["step"])

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Path, Config], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def _module(package: str, extra: str, purpose: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(package, extra, purpose) from error


def _names(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
