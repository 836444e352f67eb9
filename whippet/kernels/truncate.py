"""Truncation before a draw: which tokens may come at all, and with which weight, without a rounded sum.

    w_v = floor(2^60 p_v)            tokens in order: the likelier first, of equal ones the smaller id
    top_k: the first k stay          top_p: those stay before which lies less than top_p of the weight that top_k left
    min_p: those with p_v >= min_p p_max stay          what does not stay weighs 0

Weights are whole numbers, so their sums are the same in every order, on every device and beside any other rows. The
kernel therefore need not sort: it finds the last logit that stays by halving, with 32 sums over the row, which lies in
the cache, for each of top_k and top_p. The reference sorts, and gives the same numbers.

In: logits fp32 [B, V], probs fp32 [B, V] (their softmax under a temperature, not sorted), and the settings [B]. Out:
weights int64 [B, V]. Tokens below 2^-60 weigh nothing.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whippet.kernels import triton_jit
from whippet.kernels.triton_jit import tl

__all__ = ["truncate", "truncate_reference", "whole"]

SCALE = 2.0**60
"""A row's weights sum to about this: far from 2^63, however the probabilities were rounded."""
BLOCK = 4096
"""Tokens that the kernel reads at a time."""


def whole(probs_BV: Tensor) -> Tensor:
    """Probabilities (fp32) as whole weights, int64: exact, because 2^60 only moves the exponent."""
    return (probs_BV * SCALE).long()


def truncate(logits_BV: Tensor, probs_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, min_p_B: Tensor) -> Tensor:
    """Return weights [B, V] int64. top_k 0, top_p 1 and min_p 0 shut nothing out. top_k int64, the others fp32."""
    if not triton_jit.usable(logits_BV):
        return truncate_reference(logits_BV, probs_BV, top_k_B, top_p_B, min_p_B)
    logits_BV, probs_BV = logits_BV.contiguous(), probs_BV.contiguous()
    weights_BV = torch.empty(logits_BV.shape, dtype=torch.int64, device=logits_BV.device)
    settings = (top_k_B.contiguous(), top_p_B.contiguous(), min_p_B.contiguous())
    _truncate_kernel[(len(logits_BV),)](
        logits_BV, probs_BV, *settings, weights_BV, logits_BV.shape[1], SCALE=SCALE, BLOCK=BLOCK, num_warps=16
    )
    return weights_BV


def truncate_reference(
    logits_BV: Tensor, probs_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, min_p_B: Tensor
) -> Tensor:
    """The definition, with a stable sort."""
    order_BV = logits_BV.sort(dim=-1, descending=True, stable=True).indices
    probs_BV = probs_BV.gather(-1, order_BV)
    weights_BV = whole(probs_BV)
    rank_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    weights_BV = weights_BV.masked_fill((top_k_B[:, None] > 0) & (rank_V >= top_k_B[:, None]), 0)
    sums_BV = weights_BV.cumsum(-1)
    limit_B1 = top_p_B[:, None].double() * sums_BV[:, -1:].double()
    keep_BV = (top_p_B[:, None] >= 1) | ((sums_BV - weights_BV).double() < limit_B1)
    keep_BV &= probs_BV >= min_p_B[:, None] * probs_BV[:, :1]
    return torch.zeros_like(weights_BV).scatter_(-1, order_BV, weights_BV * keep_BV)


@triton_jit.jit
def _loaded(logits_ptr, probs_ptr, ids, inside, SCALE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits as int32 in the same order (equal ones equal, so both zeros), and whole weights."""
    logits = tl.load(logits_ptr + ids, mask=inside, other=float("-inf"))
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)
    weights = (tl.load(probs_ptr + ids, mask=inside, other=0.0) * SCALE).to(tl.int64)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), weights


@triton_jit.jit
def _from(logits_ptr, probs_ptr, vocab, least, SCALE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many tokens have a logit of at least ``least``, and what they weigh."""
    counts = tl.zeros([BLOCK], tl.int32)
    sums = tl.zeros([BLOCK], tl.int64)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        keys, weights = _loaded(logits_ptr, probs_ptr, ids, ids < vocab, SCALE)
        taken = keys >= least  # behind the row they are -inf and weigh nothing, which no caller minds
        counts += taken.to(tl.int32)
        sums += tl.where(taken, weights, 0)
    return tl.sum(counts).to(tl.int64), tl.sum(sums)


@triton_jit.jit
def _truncate_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    probs_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    weights_ptr,
    vocab,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocab
    probs_ptr += row * vocab
    weights_ptr += row * vocab
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    # Of the tokens at the last logit of top_k, the first k_ties stay. -2^31 is no logit's key: then all stay.
    k_last = tl.full((), -(2**31), tl.int64)
    k_ties = tl.full((), 0, tl.int64)
    count, total = _from(logits_ptr, probs_ptr, vocab, k_last, SCALE, BLOCK)
    if (top_k > 0) & (top_k < vocab):
        beyond = tl.full((), 2**31, tl.int64)
        for _ in range(32):
            middle = (k_last + beyond) >> 1
            count, weight = _from(logits_ptr, probs_ptr, vocab, middle, SCALE, BLOCK)
            k_last = tl.where(count >= top_k, middle, k_last)
            beyond = tl.where(count >= top_k, beyond, middle)
        count, weight = _from(logits_ptr, probs_ptr, vocab, k_last, SCALE, BLOCK)
        above, total = _from(logits_ptr, probs_ptr, vocab, beyond, SCALE, BLOCK)
        k_ties = top_k - above
        total += k_ties * ((weight - total) // (count - above))
    # Of the tokens at the last logit of top_p, those stay before which lies less than the limit.
    p_last = tl.full((), -(2**31), tl.int64)
    p_above = tl.full((), 0, tl.int64)
    limit = top_p.to(tl.float64) * total.to(tl.float64)
    if top_p < 1:
        p_last = k_last
        beyond = tl.full((), 2**31, tl.int64)
        for _ in range(32):
            middle = (p_last + beyond) >> 1
            count, weight = _from(logits_ptr, probs_ptr, vocab, middle, SCALE, BLOCK)
            enough = weight.to(tl.float64) >= limit
            p_last = tl.where(enough, middle, p_last)
            beyond = tl.where(enough, beyond, middle)
        count, p_above = _from(logits_ptr, probs_ptr, vocab, beyond, SCALE, BLOCK)
    highest = tl.full([BLOCK], 0, tl.float32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, tl.load(probs_ptr + ids, mask=ids < vocab, other=0.0))
    least = tl.load(min_p_ptr + row) * tl.max(highest)
    k_met = tl.full((), 0, tl.int64)
    p_met = tl.full((), 0, tl.int64)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        keys, weights = _loaded(logits_ptr, probs_ptr, ids, ids < vocab, SCALE)
        k_tied = ((ids < vocab) & (keys == k_last)).to(tl.int64)
        p_tied = ((ids < vocab) & (keys == p_last)).to(tl.int64)
        k_before = k_met + tl.cumsum(k_tied) - k_tied
        p_before = p_above + (p_met + tl.cumsum(p_tied) - p_tied) * weights
        keep = (keys > k_last) | ((keys == k_last) & (k_before < k_ties))
        keep &= (keys > p_last) | ((keys == p_last) & (p_before.to(tl.float64) < limit))
        keep &= tl.load(probs_ptr + ids, mask=ids < vocab, other=0.0) >= least
        tl.store(weights_ptr + ids, tl.where(keep, weights, 0), mask=ids < vocab)
        k_met += tl.sum(k_tied)
        p_met += tl.sum(p_tied)
