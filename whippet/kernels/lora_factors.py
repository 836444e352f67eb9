"""The low-rank factors of an adapter (https://arxiv.org/abs/2106.09685) as products want them.

In: fp32 masters A [r, K] and B [n, r] of each part of a fused weight. Out: ``Stacked``, all parts' factors in the
compute dtype, A [R, K] one below the other, and scale · B along the diagonal of [N, R]: one product serves all parts.

Shapes: K inputs, N outputs, n outputs of a part, r rank of a part, R ranks of all parts together.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from whippet.kernels.copies import Pair


@dataclass(frozen=True)
class LoraPart:
    """The low-rank factors of one block of rows of a fused weight."""

    a_rK: Tensor
    b_nr: Tensor
    rows: slice
    """Rows of the fused weight, that is columns of its output, that the part adds to."""
    scale: float
    x_dropped: Tensor | None = None
    """x after dropout, [T, K]; None where there is none. Parts may share one."""


class Stacked:
    """The factors of all parts in one dtype: ``a_RK`` and ``b_NR``, in which everything off the diagonal is zero.

    They are renewed when a master has changed, which its version counter tells, so once an optimiser step.
    """

    def __init__(self, parts: Sequence[LoraPart], num_outputs: int, dtype: torch.dtype) -> None:
        ranks = [len(part.a_rK) for part in parts]
        first = parts[0].a_rK
        self.a_RK = first.new_empty(sum(ranks), first.shape[1], dtype=dtype)
        self.b_NR = first.new_zeros(num_outputs, sum(ranks), dtype=dtype)
        stops = [*accumulate(ranks)]
        self.columns = [slice(stop - rank, stop) for rank, stop in zip(ranks, stops, strict=True)]
        self._versions: tuple[int, ...] = ()
        self._masters = [factor for part in parts for factor in (part.a_rK, part.b_nr)]

    def fits(self, parts: Sequence[LoraPart], dtype: torch.dtype) -> bool:
        """Whether this was made for these masters and this dtype."""
        masters = [factor for part in parts for factor in (part.a_rK, part.b_nr)]
        same = len(masters) == len(self._masters) and all(map(operator.is_, masters, self._masters))
        return same and self.a_RK.dtype == dtype

    def renewed(self, parts: Sequence[LoraPart]) -> Stacked:
        """This, as the masters are now."""
        if self._current() != self._versions:
            self.write(parts)
        return self

    @torch.no_grad()
    def write(self, parts: Sequence[LoraPart]) -> None:
        """Copy the masters."""
        for source, target, scale in self.pairs(parts):
            torch.mul(source, scale, out=target)
        self.mark()

    def pairs(self, parts: Sequence[LoraPart]) -> list[Pair]:
        """What is copied where."""
        found: list[Pair] = []
        for columns, part in zip(self.columns, parts, strict=True):
            found.append((part.a_rK.detach(), self.a_RK[columns], 1.0))
            found.append((part.b_nr.detach(), self.b_NR[part.rows, columns], part.scale))
        return found

    def mark(self) -> None:
        """The masters as they are now have been copied."""
        self._versions = self._current()

    def _current(self) -> tuple[int, ...]:
        return tuple(factor._version for factor in self._masters)
