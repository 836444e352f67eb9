"""Prompts through the decoder, as one packed stream; on a GPU recorded as CUDA graphs where they are short.

A pass over some hundred tokens takes a GPU less time than Python needs to launch it. So such a stream is filled up with
a document of no account to one of a few lengths, and the pass over it recorded the second time that its size is met, as
long as the cache holds nothing of any of its rows (then attention is that of training, whose shapes do not depend on
what is held).

B: rows. T: tokens of all rows. N: pages of a row. H: hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whippet.infer.steps import Steps
from whippet.kernels.attention import backend
from whippet.model.decoder import Decoder
from whippet.model.paged import PAGE, PagedCache, Rows

MOST_RECORDED = 2048
"""Tokens of a stream from which on launching takes no time worth sparing."""
FINE, COARSE = 128, 256
"""Streams are filled up to multiples of these, below 1,024 tokens and above."""
MOST_GRAPHS = 32


@dataclass(frozen=True)
class Reading:
    """A row's new tokens, and what the cache holds of it before them."""

    slot: int
    ids: Sequence[int]
    held: int
    adapter: int


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    last_BH: Tensor


class Prefill:
    """Passes over the new tokens of rows; keys and values go to the pages that ``steps`` has for their slots."""

    def __init__(self, decoder: Decoder, cache: PagedCache, steps: Steps) -> None:
        self._decoder, self._cache, self._steps = decoder, cache, steps
        self._graphs: dict[tuple[int, int], _Recorded] = {}
        self._met: set[tuple[int, int]] = set()
        self._pool: Any = None
        config = decoder.config
        capped = config.attention_softcap is not None
        kernel = backend(decoder.device, decoder.compute_dtype, config.head_dim, capped)
        self._records = steps.records and kernel != "sdpa"

    def __call__(self, rows: Sequence[Reading]) -> Tensor:
        """Hidden states [B, H] of the last of each row's new tokens."""
        total = sum(len(row.ids) for row in rows)
        size = _size(total)
        key = size, 1 << (len(rows) - 1).bit_length()
        fits = size <= MOST_RECORDED and size <= PAGE * self._steps.most_pages
        if not self._records or not fits or any(row.held for row in rows):
            return self._as_written(rows)
        if key not in self._graphs and len(self._graphs) == MOST_GRAPHS:
            return self._as_written(rows)
        given = self._sent(rows, *key)
        if key not in self._met:
            # Kernels are compiled at the first pass of a size, which no graph can hold.
            self._met.add(key)
            return self._pass(given, size)[: len(rows)]
        if key not in self._graphs:
            self._graphs[key] = self._record(given, size)
        recorded = self._graphs[key]
        for tensor, value in zip(recorded.inputs, given, strict=True):
            tensor.copy_(value)
        recorded.graph.replay()
        return recorded.last_BH[: len(rows)]

    def _as_written(self, rows: Sequence[Reading]) -> Tensor:
        ids_T, positions_T, borders, adapter_T, slots_B = self._sent(rows)
        held = [row.held for row in rows]
        pages = max(-(-(row.held + len(row.ids)) // PAGE) for row in rows)
        where = Rows(self._cache, self._steps.table(slots_B, pages), self._steps.sent(held, torch.int32), held)
        longest = max(len(row.ids) for row in rows)
        with self._decoder.choosing(adapter_T):
            hidden_TH = self._decoder(ids_T, positions_T, borders, longest, cache=where)
        return hidden_TH[borders[1:].long() - 1]

    def _record(self, given: tuple[Tensor, ...], size: int) -> _Recorded:
        inputs = tuple(tensor.clone() for tensor in given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            last_BH = self._pass(inputs, size)
        self._pool = self._pool or graph.pool()
        return _Recorded(graph, inputs, last_BH)

    def _pass(self, given: tuple[Tensor, ...], size: int) -> Tensor:
        """Over a stream of ``size`` tokens, none of whose rows the cache holds anything of."""
        ids_T, positions_T, borders, adapter_T, slots_B = given
        nothing_B = torch.zeros(len(slots_B), dtype=torch.int32, device=slots_B.device)
        where = Rows(self._cache, self._steps.table(slots_B, size // PAGE), nothing_B, [0] * len(slots_B))
        with self._decoder.choosing(adapter_T):
            hidden_TH = self._decoder(ids_T, positions_T, borders, size, cache=where)
        return hidden_TH[borders[1:].long() - 1]

    def _sent(self, rows: Sequence[Reading], size: int = 0, count: int = 0) -> tuple[Tensor, ...]:
        """Ids, positions, borders, adapters and slots of a stream. With ``size`` and ``count`` it is filled up to so
        many tokens by one row more, which comes last, and to so many rows before that by empty ones."""
        ids = [token_id for row in rows for token_id in row.ids]
        positions = [row.held + place for row in rows for place in range(len(row.ids))]
        adapters = [row.adapter for row in rows for _ in row.ids]
        slots, borders = [row.slot for row in rows], [0]
        for row in rows:
            borders.append(borders[-1] + len(row.ids))
        if size:
            more = size - len(ids)
            borders += [borders[-1]] * (count - len(rows)) + [size]
            slots += [self._steps.spare] * (count + 1 - len(rows))
            ids, positions, adapters = ids + [0] * more, [*positions, *range(more)], adapters + [0] * more
        sent = self._steps.sent
        return (
            sent(ids, torch.int64), sent(positions, torch.int64), sent(borders, torch.int32),
            sent(adapters, torch.int32), sent(slots, torch.int64),
        )  # fmt: skip


def _size(total: int) -> int:
    step = FINE if total <= 1024 else COARSE
    return -(-total // step) * step
