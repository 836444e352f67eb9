"""A step's packs as micro-batches: as many tokens at once as the plan allows, in the order in which they came.

Comes in: the batches of a step. Goes out: batches of at most ``most_tokens``; larger packs are parted at the borders of
documents, and only a single document may be longer. No grouping changes the result, since losses are summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from whippet.data.batches import Batch


def micro_batches(batches: Iterable[Batch], most_tokens: int) -> Iterator[Batch]:
    """Join neighbours and part what is too long; batches without any trained token are left out."""
    gathered: list[Batch] = []
    tokens = 0
    for batch in batches:
        for part in _parted(batch, most_tokens):
            if not part.weight_sum:
                continue
            if gathered and tokens + part.num_tokens > most_tokens:
                yield joined(gathered)
                gathered, tokens = [], 0
            gathered.append(part)
            tokens += part.num_tokens
    if gathered:
        yield joined(gathered)


def joined(batches: Sequence[Batch]) -> Batch:
    """``batches`` as one packed stream, their documents in the same order."""
    if len(batches) == 1:
        return batches[0]
    borders = [torch.zeros(1, dtype=torch.int32)]
    start = 0
    for batch in batches:
        borders.append(batch.cu_seqlens[1:] + start)
        start += batch.num_tokens
    return Batch(
        ids=torch.cat([batch.ids for batch in batches]),
        positions=torch.cat([batch.positions for batch in batches]),
        cu_seqlens=torch.cat(borders),
        labels=torch.cat([batch.labels for batch in batches]),
        weights=torch.cat([batch.weights for batch in batches]),
        max_length=max(batch.max_length for batch in batches),
        weight_sum=sum(batch.weight_sum for batch in batches),
    )


def _parted(batch: Batch, most_tokens: int) -> Iterator[Batch]:
    halves = batch.halves() if batch.num_tokens > most_tokens else None
    if halves is None:
        yield batch
        return
    for half in halves:
        yield from _parted(half, most_tokens)
