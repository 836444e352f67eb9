"""The headline figures of a run, from its records: what the card and the page say first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whippet.report.metrics import value_of
from whippet.report.series import series


@dataclass(frozen=True)
class Results:
    """First and last figures. None where nothing was measured. Losses are nats per trained token."""

    steps: int = 0
    tokens: float | None = None
    """Tokens seen, trained on or not."""
    loss_first: float | None = None
    loss_last: float | None = None
    """Mean of the last tenth of the steps, at least one: a single step is noise."""
    eval_first: float | None = None
    eval_last: float | None = None
    eval_accuracy_first: float | None = None
    eval_accuracy_last: float | None = None
    eval_before: bool = False
    """Whether the first evaluation came before the first step."""
    peak_bytes: float | None = None
    tokens_per_s: float | None = None
    """Median over the steps: the first ones warm up."""
    seconds: float | None = None
    """Time spent in steps."""


def results(records: Sequence[Mapping[str, Any]]) -> Results:
    """Read the figures from the records of ``metrics.py``."""
    loss, evaluated, accuracy = (series(records, key) for key in ("loss", "eval_loss", "eval_accuracy"))
    peak, speed, time = (series(records, f"time.{key}") for key in ("peak_bytes", "tokens_per_s", "step_s"))
    tail = max(1, len(loss) // 10)
    return Results(
        steps=max((int(record["step"]) for record in records), default=0),
        tokens=max((seen for record in records if (seen := value_of(record, "tokens_seen")) is not None), default=None),
        loss_first=float(loss.y[0]) if len(loss) else None,
        loss_last=float(loss.y[-tail:].mean()) if len(loss) else None,
        eval_first=float(evaluated.y[0]) if len(evaluated) else None,
        eval_last=float(evaluated.y[-1]) if len(evaluated) else None,
        eval_accuracy_first=float(accuracy.y[0]) if len(accuracy) else None,
        eval_accuracy_last=float(accuracy.y[-1]) if len(accuracy) else None,
        eval_before=bool(len(evaluated)) and evaluated.x[0] == 0,
        peak_bytes=float(peak.y.max()) if len(peak) else None,
        tokens_per_s=float(np.median(speed.y)) if len(speed) else None,
        seconds=float(time.y.sum()) if len(time) else None,
    )
