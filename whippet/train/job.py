"""What the loop is given, and how far it has come: plain values, most of them JSON.

Comes in: the parts that ``run.py`` made. Goes out: ``Job``, ``Progress``, and ``Stopped`` for the end by a signal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from whippet.data.batches import Batches, DataPosition
from whippet.errors import StoppedResumable
from whippet.infer.model import Model
from whippet.options import Recipe
from whippet.report.trackers import Tracker
from whippet.train.evaluate import SamplePrompt
from whippet.train.objectives.sft import Objective
from whippet.train.plan import Plan


class Stopped(StoppedResumable):
    """A signal came: the step was ended and saved. Exits as a process that the signal killed would."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Job:
    """All that the loop needs; ``run.py`` makes one. ``prompts`` are empty if no samples are wanted."""

    recipe: Recipe
    plan: Plan
    model: Model
    objective: Objective
    batches: Batches
    eval_batches: Batches | None
    prompts: Sequence[SamplePrompt]
    folder: Path
    data_seal: str
    """A checksum of the training examples: a run goes on only over the same ones."""
    resume_command: str
    trackers: Sequence[Tracker] = ()


@dataclass(frozen=True)
class Progress:
    """How far a run has come, with what the next step depends on besides weights and optimiser."""

    step: int = 0
    tokens_seen: int = 0
    position: DataPosition = field(default_factory=DataPosition)
    bad_in_a_row: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``."""
        return cls(**dict(value) | {"position": DataPosition(**value["position"])})


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's random numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()) >> 1
