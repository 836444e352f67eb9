"""Drawing as it is defined, for tests to compare with: filters over sorted probabilities, in floats.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def choose(
    logits_BV: Tensor,
    uniform_B: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    *,
    sort: bool = True,
) -> Tensor:
    """Ids [B] int64 where the cumulative distribution of the filtered tokens passes ``uniform_B`` (float64, [0, 1)).

    logits_BV: fp32; temperatures above 0. With ``sort`` the running sum goes from the likeliest token down, without it
    in the order of the vocabulary; the filters then must be off in every row.
    """
    scaled_BV = logits_BV / temperature_B[:, None]
    if not sort:
        return _draw(scaled_BV.softmax(-1), uniform_B)
    scaled_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    rank_1V = torch.arange(scaled_BV.shape[-1], device=scaled_BV.device)[None]
    outside_BV = (top_k_B[:, None] > 0) & (rank_1V >= top_k_B[:, None])
    probs_BV = scaled_BV.masked_fill(outside_BV, -math.inf).softmax(-1)
    # A token stays while those before it have not reached top_p; the first always stays, also by rounding.
    before_BV = probs_BV.cumsum(-1) - probs_BV
    keep_BV = (top_p_B[:, None] >= 1) | (before_BV < top_p_B[:, None])
    keep_BV &= probs_BV >= min_p_B[:, None] * probs_BV[:, :1]
    keep_BV[:, 0] = True
    place_B = _draw(probs_BV * keep_BV, uniform_B)
    return order_BV.gather(-1, place_B[:, None])[:, 0]


def _draw(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first place at which the running sum of the weights exceeds its share ``uniform_B`` of the total."""
    sums_BV = weights_BV.double().cumsum(-1)
    place_B = torch.searchsorted(sums_BV, (uniform_B * sums_BV[:, -1])[:, None], right=True)[:, 0]
    # uniform * total may round up to the total; the last token that has any weight is then meant.
    last_B = (weights_BV > 0).long().mul(torch.arange(weights_BV.shape[-1], device=weights_BV.device)).amax(-1)
    return torch.minimum(place_B, last_B)
