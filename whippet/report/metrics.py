"""The metrics of a run: one JSON line a step, which every other tool reads.

Comes in: records, plain dictionaries with a ``step`` and any of ``loss``, ``accuracy``, ``learning_rate``,
``grad_norm``, ``tokens``, ``trained_tokens``, ``tokens_seen``, ``eval_loss``, ``eval_accuracy``. What two equal runs
may differ in lies under ``time``: ``step_s``, ``tokens_per_s``, ``mfu``, ``eta_s`` and ``peak_bytes``. Goes out:
``metrics.jsonl``, valid JSON on every line (a value that is not finite is null).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whippet.errors import UsageError

Record = dict[str, Any]


class MetricsLog:
    """Appends to ``path``, which is opened for each line: when ``append`` returns, other programs see the line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line. Raises TypeError for a value that JSON does not know: a programmer's mistake."""
        line = json.dumps(finite(dict(record)), ensure_ascii=False, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def truncate_after(self, step: int) -> None:
        """Forget what came after ``step``, and a line that a crash cut short: the run goes on from there."""
        if not self.path.exists():
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        aside = self.path.with_name(f".{self.path.name}.partial")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)


def read_metrics(path: Path) -> list[Record]:
    """Every record of the file, in order. A last line without its end is a crash's and is left out.

    Raises UsageError naming the line that is no record.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as metrics: {error}") from error
    *lines, _cut_short = text.split("\n")
    return [_record(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line]


def value_of(record: Mapping[str, Any], key: str) -> float | None:
    """The number at ``key`` (``time.step_s`` looks inside ``time``), or None if there is no finite one."""
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise UsageError(f"{where}: no metrics record; wanted an object with a whole number 'step'")
    return record


def finite(value: Any) -> Any:
    """``value`` with None for each number that JSON has no word for: infinities, and what is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
