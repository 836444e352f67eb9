"""Examples to batches and steps: the fifth and sixth arrow of the walk.

Comes in: a store or stream of examples. Goes out: ``Step`` after ``Step``, each some packs of about
``tokens_per_step`` tokens together. A batch is one packed stream of T tokens without padding.

An epoch shows every example exactly once (or by the share of its source). A step takes packs while that brings it
nearer to ``tokens_per_step``; one that an epoch's end leaves short goes on with the next epoch, so that only the last
step of all may be short. The same arguments give the same steps, and a ``DataPosition`` goes on exactly where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from whippet.data.pack import best_fit
from whippet.data.store import Window
from whippet.data.weigh import Weighed
from whippet.errors import DataError

IGNORED = -100


@dataclass(frozen=True)
class DataPosition:
    """Where in the data a step begins: the epoch, the row at which the window begins, the pack within the window."""

    epoch: int = 0
    row: int = 0
    pack: int = 0

    def as_dict(self) -> dict[str, int]:
        """For JSON; ``DataPosition(**d)`` makes it again."""
        return asdict(self)


@dataclass(frozen=True)
class Batch:
    """A packed stream of T tokens in D documents.

    ids, positions, labels int64 [T]; weights float32 [T]; cu_seqlens int32 [D + 1], where documents begin and end.
    labels: the next token of the same document, -100 where it has no loss weight; weights: the loss weight of the
    label. max_length: tokens of the longest document. weight_sum: the sum of ``weights``. rows: int64 [N], ascending,
    the places whose loss is formed; None until they have been looked for.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    labels: Tensor
    weights: Tensor
    max_length: int
    weight_sum: float
    rows: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.ids.numel()

    @property
    def num_examples(self) -> int:
        return self.cu_seqlens.numel() - 1

    @property
    def num_trained(self) -> int:
        """Tokens with a label. Of a batch on a GPU it waits for that."""
        return int((self.labels != IGNORED).sum())

    def tensors(self) -> dict[str, Tensor]:
        """All of them by their names."""
        names = ("ids", "positions", "cu_seqlens", "labels", "weights", "rows")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def with_rows(self) -> Batch:
        """The same batch, the places that have a label found."""
        return self if self.rows is not None else replace(self, rows=(self.labels != IGNORED).nonzero()[:, 0])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def halves(self) -> tuple[Batch, Batch] | None:
        """Two batches, parted at the border nearest to the middle; None if there is only one document."""
        borders = self.cu_seqlens.tolist()
        if len(borders) <= 2:
            return None
        middle = min(range(1, len(borders) - 1), key=lambda d: abs(2 * borders[d] - borders[-1]))
        return self._part(borders, 0, middle), self._part(borders, middle, len(borders) - 1)

    def _part(self, borders: list[int], first: int, last: int) -> Batch:
        cut = slice(borders[first], borders[last])
        longest = max(borders[d + 1] - borders[d] for d in range(first, last))
        return Batch(
            ids=self.ids[cut],
            positions=self.positions[cut],
            cu_seqlens=self.cu_seqlens[first : last + 1] - borders[first],
            labels=self.labels[cut],
            weights=self.weights[cut],
            max_length=longest,
            weight_sum=float(self.weights[cut].sum(dtype=torch.float64)),
        )


@dataclass(frozen=True)
class Step:
    """What one optimiser step learns from. position: where the step after this one begins."""

    batches: tuple[Batch, ...]
    weight_sum: float
    num_tokens: int
    num_examples: int
    position: DataPosition


def make_batch(examples: Sequence[Weighed]) -> Batch:
    """Lay ``examples`` end to end, on the CPU."""
    lengths = np.array([len(example) for example in examples])
    borders = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([example.ids for example in examples]).astype(np.int64)
    # Weights belong to the token that is predicted, so they move one to the left. The first token of every example
    # has weight 0, hence no label crosses a border, nor goes round from the end.
    weights = np.roll(np.concatenate([example.weights for example in examples]).astype(np.float32), -1)
    labels = np.where(weights > 0, np.roll(ids, -1), IGNORED)
    positions = np.arange(len(ids)) - np.repeat(borders[:-1], lengths)
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(borders.astype(np.int32)),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        max_length=int(lengths.max()),
        weight_sum=float(weights.sum(dtype=np.float64)),
    )


class Examples(Protocol):
    """What batches are made from: an ``ExampleStore`` or an ``ExampleStream``."""

    def windows(
        self, epoch: int, *, seed: int, shuffle: bool, start: int = 0, share: float = 1.0
    ) -> Iterator[Window]: ...


@dataclass(frozen=True)
class Pack:
    """Examples of one window that lie in one batch."""

    position: DataPosition
    window: Window
    members: list[int]
    num_tokens: int


class Batches:
    """Steps over ``examples``.

    max_length: tokens that a pack holds at most; a pack is not made longer than ``tokens_per_step`` either, but for a
    single example that is. packing False: one example a batch.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        tokens_per_step: int,
        max_length: int,
        packing: bool = True,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        assert tokens_per_step > 0 and max_length > 0
        self.examples = examples
        self.tokens_per_step = tokens_per_step
        self.capacity = min(max_length, tokens_per_step)
        self.packing = packing
        self.shuffle = shuffle
        self.seed = seed

    def steps(self, start: DataPosition | None = None, epochs: float | None = None) -> Iterator[Step]:
        """Steps from ``start`` on (None: the beginning) until ``epochs`` passes are done (None: without end)."""
        for packs, position in self._grouped(self._packs(start or DataPosition(), epochs)):
            batches = tuple(make_batch([pack.window.get(member) for member in pack.members]) for pack in packs)
            yield Step(
                batches=batches,
                weight_sum=sum(batch.weight_sum for batch in batches),
                num_tokens=sum(pack.num_tokens for pack in packs),
                num_examples=sum(len(pack.members) for pack in packs),
                position=position,
            )

    def num_steps(self, epochs: float = 1.0) -> int:
        """How many steps ``steps(epochs=epochs)`` yields. Packs everything, so ask a stream only if it is short."""
        return sum(1 for _ in self._grouped(self._packs(DataPosition(), epochs)))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch alone."""
        return self.num_steps(1.0)

    def _grouped(self, packs: Iterable[Pack]) -> Iterator[tuple[list[Pack], DataPosition]]:
        """Packs of a step, with the position of the pack after them."""
        gathered: list[Pack] = []
        tokens = 0
        for pack in packs:
            if gathered and tokens + pack.num_tokens / 2 > self.tokens_per_step:
                yield gathered, pack.position
                gathered, tokens = [], 0
            gathered.append(pack)
            tokens += pack.num_tokens
        if gathered:
            last = gathered[-1]
            yield gathered, DataPosition(last.position.epoch, last.window.next_row)

    def _packs(self, start: DataPosition, epochs: float | None) -> Iterator[Pack]:
        """All packs from ``start`` on. The last epoch may be a part of one."""
        epoch, position = start.epoch, start
        while epochs is None or epoch < epochs:
            share = 1.0 if epochs is None else min(epochs - epoch, 1.0)
            empty = position.row == 0
            for window in self.examples.windows(
                epoch, seed=self.seed, shuffle=self.shuffle, start=position.row, share=share
            ):
                first = position.pack if window.row == position.row else 0
                for place, members in enumerate(self._packed(window, epoch)[first:], first):
                    empty = False
                    size = sum(window.lengths[member] for member in members)
                    yield Pack(DataPosition(epoch, window.row, place), window, members, size)
            if empty and epochs is None:
                raise DataError("the data give no example to train on")
            epoch += 1
            position = DataPosition(epoch)

    def _packed(self, window: Window, epoch: int) -> list[list[int]]:
        if not self.packing:
            return [[member] for member in range(len(window.lengths))]
        packs = best_fit(window.lengths, self.capacity)
        if not self.shuffle:
            return sorted(packs, key=lambda members: members[0])
        # Best fit puts the longest examples into the first packs; steps should not be sorted by length.
        order = np.random.default_rng([self.seed, epoch, window.row, 2]).permutation(len(packs))
        return [packs[place] for place in order]
