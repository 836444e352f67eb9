"""One more token for some of the sequences in the making: everything that this takes lies on the device.

A slot is a place for one sequence. Its newest token, how many of its tokens the cache holds, which pages those are and
which adapter it wants are kept here by slot, so that a step needs to be told nothing but which slots take part, and the
next step may begin before the host has seen what this one drew. On a GPU the pass is recorded once a size as a CUDA
graph, and launched whole from then on; without that Python would take longer to launch its kernels than they take.

R: slots, and one more for rows that only fill a batch up. B: rows of a step. N: pages of a row. V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whippet.kernels.int8_tensor import Int8Tensor
from whippet.model.decoder import Decoder
from whippet.model.paged import PAGE, PagedCache, Rows

FEWEST_PAGES = 16
"""Rows are given at least as many pages to look at, and then four times as many: each number is a graph of its own."""


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    slots_B: Tensor
    logits_BV: Tensor


class Steps:
    """The state of ``slots`` sequences in a cache, and the pass that gives each the scores of its next token."""

    def __init__(self, decoder: Decoder, cache: PagedCache, slots: int, most_pages: int) -> None:
        self._decoder, self._cache, self.spare, self.most_pages = decoder, cache, slots, most_pages
        device = decoder.device
        self.ids_R = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.lengths_R = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self.adapters_R = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self._table_RN = torch.zeros(slots + 1, most_pages, dtype=torch.int32, device=device)
        self._graphs: dict[tuple[int, int], _Recorded] = {}
        self._met: set[tuple[int, int]] = set()
        self._pool: Any = None
        self.records = device.type == "cuda" and not any(
            isinstance(projection.quantised, Int8Tensor) for _, projection in decoder.projections()
        )

    def hold(self, slot: int, pages: Sequence[int], first: int = 0) -> None:
        """The pages of ``slot`` from the ``first`` on are these."""
        self._table_RN[slot, first : first + len(pages)].copy_(self.sent(pages, torch.int32), non_blocking=True)

    def put(self, slot: int, newest: int, length: int, adapter: int) -> None:
        """``slot`` goes on from the token ``newest``, which the cache does not hold yet, after ``length`` that it
        holds."""
        for state_R, value in ((self.ids_R, newest), (self.lengths_R, length), (self.adapters_R, adapter)):
            state_R[slot : slot + 1].copy_(self.sent([value], state_R.dtype), non_blocking=True)

    def table(self, slots_B: Tensor, pages: int) -> Tensor:
        """The first ``pages`` of each of ``slots_B``, int32 [B, N]."""
        return self._table_RN[slots_B, :pages]

    def sent(self, values: Sequence[int], dtype: torch.dtype) -> Tensor:
        """``values`` on the device, without waiting for it."""
        tensor = torch.tensor(values, dtype=dtype)
        if self.ids_R.is_cuda:
            return tensor.pin_memory().to(self.ids_R.device, non_blocking=True)
        return tensor

    def scores(self, slots: Sequence[int], longest: int) -> tuple[Tensor, Tensor]:
        """Scores [B, V] of the token after each slot's newest, and the slots int64 [B], on the device. ``longest``: no
        row has more tokens, the newest among them. On a GPU the scores are overwritten by the next step."""
        pages = -(-longest // PAGE)
        if not self.records:
            slots_B = self.sent(slots, torch.int64)
            return self._pass(slots_B, pages), slots_B
        rows = 1 << (len(slots) - 1).bit_length()
        pages = min(_step_up(pages), self._table_RN.shape[1])
        slots_B = self.sent([*slots, *[self.spare] * (rows - len(slots))], torch.int64)
        key = (rows, pages)
        if key not in self._met:
            # Kernels are compiled at the first pass of a size, which no graph can hold.
            self._met.add(key)
            return self._pass(slots_B, pages)[: len(slots)], slots_B[: len(slots)]
        if key not in self._graphs:
            self._graphs[key] = self._record(slots_B, pages)
        recorded = self._graphs[key]
        recorded.slots_B.copy_(slots_B)
        recorded.graph.replay()
        return recorded.logits_BV[: len(slots)], slots_B[: len(slots)]

    def took(self, slots_B: Tensor, ids_B: Tensor) -> None:
        """The slots' newest tokens are in the cache now, and these are the new ones."""
        self.lengths_R.index_add_(0, slots_B, torch.ones_like(slots_B, dtype=torch.int32))
        self.ids_R.index_copy_(0, slots_B, ids_B)

    def _record(self, slots_B: Tensor, pages: int) -> _Recorded:
        static_B = slots_B.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits_BV = self._pass(static_B, pages)
        self._pool = self._pool or graph.pool()
        return _Recorded(graph, static_B, logits_BV)

    def _pass(self, slots_B: Tensor, pages: int) -> Tensor:
        lengths_B = self.lengths_R[slots_B]
        rows = Rows(self._cache, self._table_RN[slots_B, :pages], lengths_B)
        borders = torch.arange(len(slots_B) + 1, dtype=torch.int32, device=slots_B.device)
        with self._decoder.choosing(self.adapters_R[slots_B]):
            hidden_BH = self._decoder(self.ids_R[slots_B], lengths_B.long(), borders, 1, cache=rows)
        return self._decoder.logits(hidden_BH)


def _step_up(pages: int) -> int:
    size = FEWEST_PAGES
    while size < pages:
        size *= 4
    return size
