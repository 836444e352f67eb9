"""A few shapes for all micro-batches, so that what was prepared for one (``train/replay.py``) serves many.

Comes in: a micro-batch of any size. Goes out: the same with some tokens behind it that carry no loss, as a document of
their own, and some empty documents. Gradients of what was added are zero to the last bit, and no document sees another,
so the result is that of the batch alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from whippet.data.batches import Batch
from whippet.kernels.triton_jit import power_of_two

GRAIN = 64
"""Tokens of a padded micro-batch are a multiple of this at least."""
FEW, COARSE, FINE = 2048, 8, 32
"""Up to so few tokens a GPU reads weights for most of a step, and some tokens more cost little: there they are a
multiple of 1/8 of the next power of two, beyond of 1/32."""
SHORTEST = 512
"""Below this, the length of the longest document makes no difference to anybody."""


@dataclass(frozen=True)
class Shape:
    """What the work on a GPU depends on."""

    tokens: int
    documents: int
    max_length: int
    rows: int
    """Places whose loss is formed."""


def shape_of(batch: Batch, most_tokens: int) -> Shape:
    """The least shape that ``batch`` (with its rows) fits in. ``most_tokens``: beyond those nothing is added."""
    assert batch.rows is not None
    tokens = batch.num_tokens
    grain = max(GRAIN, power_of_two(tokens) // (COARSE if tokens <= FEW else FINE))
    tokens = max(tokens, min(-(-tokens // grain) * grain, most_tokens))
    added = tokens - batch.num_tokens
    quarter = -(-tokens // 4)
    return Shape(
        tokens=tokens,
        documents=power_of_two(batch.num_examples + bool(added)),
        max_length=power_of_two(max(batch.max_length, added, SHORTEST)),
        rows=min(-(-len(batch.rows) // quarter) * quarter, tokens),
    )


def padded(batch: Batch, shape: Shape) -> Batch:
    """``batch`` (on the CPU, with its rows) in ``shape``. Added rows lie where nothing is trained and weigh nothing."""
    assert batch.rows is not None
    added = shape.tokens - batch.num_tokens
    empty = shape.documents - batch.num_examples
    assert added >= 0 and empty >= bool(added), (shape, batch.num_tokens, batch.num_examples)

    def longer(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor.new_zeros(added)]) if added else tensor

    chosen = torch.zeros(shape.tokens, dtype=torch.bool)
    chosen[batch.rows] = True
    spare = chosen.logical_not().nonzero()[:, 0]
    # The last of them: most lie behind the batch's own tokens.
    chosen[spare[len(spare) - (shape.rows - len(batch.rows)) :]] = True
    labels, weights = longer(batch.labels).clone(), longer(batch.weights).clone()
    labels[spare], weights[spare] = 0, 0.0
    return replace(
        batch,
        ids=longer(batch.ids),
        positions=torch.cat([batch.positions, torch.arange(added)]),
        cu_seqlens=torch.cat([batch.cu_seqlens, batch.cu_seqlens.new_full((empty,), shape.tokens)]),
        labels=labels,
        weights=weights,
        rows=chosen.nonzero()[:, 0],
        max_length=shape.max_length,
    )
