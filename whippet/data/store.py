"""Examples in memory: one flat array of ids, one of weights, and where each example begins.

Comes in: ``Weighed`` examples, one at a time. Goes out: ``ExampleStore``, five bytes a token, and from it the windows
of an epoch: a few thousand examples at a time, in the order in which they are to be seen.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whippet.data.weigh import Weighed

WINDOW = 4096
"""Examples that are packed together. Best fit over more fills packs hardly better and takes longer to begin."""


@dataclass(frozen=True)
class Window:
    """Some examples of an epoch. row: the place of the first in the epoch's order; next_row: of the window after.
    lengths: tokens of each; get: the example by its index into ``lengths``."""

    row: int
    next_row: int
    lengths: list[int]
    get: Callable[[int], Weighed]


@dataclass(frozen=True)
class ExampleStore:
    """E examples with N tokens in all.

    ids int32 [N]; weights uint8 (if all are 0 or 1) or float32 [N]; offsets int64 [E + 1]; sources int16 [E], the
    number of the source that each came from; shares: how often each source is seen in an epoch.
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int16]
    shares: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Weighed:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self.offsets[index], self.offsets[index + 1]
        return Weighed(self.ids[start:end], self.weights[start:end])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example [E]."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        """Tokens with a loss weight above 0."""
        return int(np.count_nonzero(self.weights))

    def order(self, epoch: int, seed: int, shuffle: bool) -> npt.NDArray[np.int64]:
        """The examples of an epoch in order. A source with share 2.5 has each example twice and a drawn half once
        more; the draw is another one each epoch."""
        chosen: list[npt.NDArray[np.int64]] = []
        for source, share in enumerate(self.shares):
            members = np.flatnonzero(self.sources == source)
            whole, part = divmod(share, 1.0)
            chosen += [members] * int(whole)
            if part:
                draw = np.random.default_rng([seed, epoch, source, 1])
                chosen.append(np.sort(draw.choice(members, round(part * len(members)), replace=False)))
        order = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
        return np.random.default_rng([seed, epoch, 0]).permutation(order) if shuffle else order

    def windows(self, epoch: int, *, seed: int, shuffle: bool, start: int = 0, share: float = 1.0) -> Iterator[Window]:
        """Windows of the first ``share`` of an epoch, from place ``start`` on (the ``row`` of a window, or its end)."""
        order = self.order(epoch, seed, shuffle)
        order = order[: round(share * len(order))]
        lengths = self.lengths
        for row in range(start, len(order), WINDOW):
            members = order[row : row + WINDOW]
            yield Window(row, row + len(members), lengths[members].tolist(), _getter(self, members))


def _getter(store: ExampleStore, members: npt.NDArray[np.int64]) -> Callable[[int], Weighed]:
    return lambda place: store[int(members[place])]


class StoreBuilder:
    """Collects examples; memory grows as the data does."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._weights: array[Any] = array("B")
        self._offsets = array("q", [0])
        self._sources = array("h")

    def add(self, example: Weighed, source: int = 0) -> None:
        """Append ``example``, which came from source number ``source``."""
        weights = example.weights
        if self._weights.typecode == "B":
            if ((weights == 0) | (weights == 1)).all():
                self._weights.frombytes(weights.astype(np.uint8).tobytes())
            else:
                self._weights = array("f", self._weights)
        if self._weights.typecode == "f":
            self._weights.frombytes(weights.astype(np.float32).tobytes())
        self._ids.frombytes(example.ids.astype(np.int32, copy=False).tobytes())
        self._offsets.append(len(self._ids))
        self._sources.append(source)

    def build(self, shares: tuple[float, ...] = (1.0,)) -> ExampleStore:
        """The store. The builder is not to be used afterwards."""
        fractional = self._weights.typecode == "f"
        return ExampleStore(
            ids=np.frombuffer(self._ids, dtype=np.int32),
            weights=np.frombuffer(self._weights, dtype=np.float32 if fractional else np.uint8),
            offsets=np.frombuffer(self._offsets, dtype=np.int64),
            sources=np.frombuffer(self._sources, dtype=np.int16),
            shares=shares,
        )
