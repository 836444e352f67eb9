"""Figures side by side: ours, those of others, and how many times better; as lines of 80 columns, and as JSON.

Comes in: what was measured, or a file that an earlier run wrote. Goes out: text and JSON.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from whippet.errors import ModelError, UsageError
from whippet.report.metrics import finite
from whippet.weights.files import read_json

Unit = Literal["tokens/s", "examples/s", "tokens", "s"]
SHORT: dict[str, str] = {"tokens/s": "tok/s", "examples/s": "ex/s", "tokens": "tok", "s": "s"}
SIDE = ("value", "peak", "planned", "error", "refused")
LESS_IS_BETTER = ("s",)
COLUMNS = 80
HEAD = f"{'row':<14} {'what':<22} {'unit':<5} {'ours':>9} {'peer':>9} {'ratio':>5} {'peak GiB':>10}"


@dataclass(frozen=True)
class Side:
    """What one side reached."""

    value: float | None
    """None: nothing, and ``error`` says why."""
    peak: int | None = None
    """Bytes of the GPU's memory."""
    planned: bool = False
    """Nothing was run: both are predictions."""
    error: str = ""
    refused: bool = False
    """The error says that this machine or installation is not made for it; all others are failures."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """All else that is known, for JSON."""

    @property
    def failed(self) -> bool:
        return bool(self.error) and not self.refused

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in SIDE} | {"details": dict(self.details)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``."""
        return cls(**{name: told[name] for name in SIDE}, details=told["details"])


@dataclass(frozen=True)
class Result:
    """A line of the table."""

    row: str
    what: str
    unit: Unit
    ours: Side
    peers: Mapping[str, Side] = field(default_factory=dict)

    def ratio(self, peer: str) -> float | None:
        """How many times better than ``peer`` we are; None where one side has no figure."""
        ours, theirs = self.ours.value, self.peers[peer].value
        if not ours or not theirs:
            return None
        return theirs / ours if self.unit in LESS_IS_BETTER else ours / theirs

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the ratios with it."""
        return {
            "row": self.row,
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours.as_dict(),
            "peers": {name: side.as_dict() for name, side in self.peers.items()},
            "ratio": {name: self.ratio(name) for name in self.peers},
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``."""
        if told["unit"] not in get_args(Unit):
            raise KeyError(f"unit {told['unit']!r}")
        peers = {name: Side.from_dict(side) for name, side in told["peers"].items()}
        return cls(told["row"], told["what"], told["unit"], Side.from_dict(told["ours"]), peers)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        names: list[str | None] = [*self.peers] or [None]
        for index, name in enumerate(names):
            what = (self.row, self.what) if index == 0 else ("", f"beside {name}")
            yield self._line(*what, name)
        for who, side in (("ours", self.ours), *self.peers.items()):
            if side.error:
                indent = " " * 4
                yield from textwrap.wrap(f"{who}: {side.error}", COLUMNS, initial_indent="  ", subsequent_indent=indent)

    def _line(self, row: str, what: str, peer: str | None) -> str:
        theirs = self.peers[peer] if peer is not None else None
        ratio = self.ratio(peer) if peer is not None else None
        peaks = [self.ours.peak, theirs.peak if theirs is not None else None]
        told = gib(peaks[0]) if peaks[1] is None else f"{gib(peaks[0])}/{gib(peaks[1])}"
        told = f"~{told}" if self.ours.planned and peaks[0] is not None else told
        cells = f"{amount(self.ours.value):>9} {amount(theirs.value if theirs is not None else None):>9}"
        times = "" if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"
        return f"{row:<14} {what:<22} {SHORT[self.unit]:<5} {cells} {times:>5} {told:>10}".rstrip()


def amount(value: float | None) -> str:
    """A rate or a time in a few characters."""
    if value is None:
        return "–"
    if value >= 1e7:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def gib(num_bytes: int | None) -> str:
    """A peak, three digits."""
    if num_bytes is None:
        return "–"
    value = num_bytes / 2**30
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def as_json(about: Mapping[str, Any], results: Iterable[Result]) -> dict[str, Any]:
    """All of a run's figures, with what they depend on. What is no number is null."""
    whole = dict(about) | {"rows": [result.as_dict() for result in results]}
    return {key: finite(value) for key, value in whole.items()}


def read_results(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """What an earlier run wrote. UsageError for another file."""
    try:
        whole = read_json(path)
        return whole, [Result.from_dict(told) for told in whole["rows"]]
    except ModelError as error:
        raise UsageError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not what whippet bench --out writes ({error})") from error
