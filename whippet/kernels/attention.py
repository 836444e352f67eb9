"""Causal attention over a packed stream, and over a key-value cache.

    out_t = sum over s ≤ t of softmax_s(scale · q_t · k_s) · v_s,  s and t in the same document

Query heads share key-value heads in groups (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245): query head h reads
key-value head h // (Q / K). On a GPU in 16 bit the packed form is torch's FlashAttention with borders; elsewhere each
run of documents of one length is a batch of torch's scaled_dot_product_attention, so that no row ever meets another
document.

Shapes: T tokens, D head size, Q query heads, K key-value heads, B rows of a batch, S cached positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def packed_attention(
    q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor, max_length: int, scale: float
) -> Tensor:
    """Causal attention inside each document of a packed stream.

    ``cu_seqlens``: int32 [documents + 1], the borders, from 0 to T. ``max_length``: tokens of the longest document.
    Returns [T, Q, D] in q's dtype.
    """
    if q_TQD.is_cuda and q_TQD.dtype in (torch.bfloat16, torch.float16):
        return _flash(q_TQD, k_TKD, v_TKD, cu_seqlens, max_length, scale)
    return _by_document(q_TQD, k_TKD, v_TKD, cu_seqlens, scale)


def cached_attention(q_BTQD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, lengths_B: Tensor, scale: float) -> Tensor:
    """Attention of the newest T tokens of each row over its cache.

    ``lengths_B``: valid cache positions of each row, the new tokens among them. The query at t of row b attends to the
    positions 0 … lengths_b - T + t. Returns [B, T, Q, D] in q's dtype.
    """
    num_new, num_slots = q_BTQD.shape[1], k_BSKD.shape[1]
    steps_T = torch.arange(num_new, device=q_BTQD.device)
    slots_S = torch.arange(num_slots, device=q_BTQD.device)
    last_BT = lengths_B.to(q_BTQD.device).view(-1, 1) - num_new + steps_T
    mask_B1TS = (slots_S <= last_BT.unsqueeze(-1)).unsqueeze(1)
    return _sdpa(q_BTQD, k_BSKD, v_BSKD, scale, mask=mask_B1TS)


def naive_attention(q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """The definition, with the whole [Q, T, T] matrix of scores: the oracle for every other path."""
    num_tokens, num_heads, _ = q_TQD.shape
    group = num_heads // k_TKD.shape[1]
    k_TQD, v_TQD = k_TKD.repeat_interleave(group, dim=1), v_TKD.repeat_interleave(group, dim=1)
    places_T = torch.arange(num_tokens, device=q_TQD.device)
    document_T = torch.bucketize(places_T, cu_seqlens[1:].to(places_T.dtype), right=True)
    same_TT = document_T.view(-1, 1) == document_T
    seen_TT = same_TT & (places_T <= places_T.view(-1, 1))
    scores_QTT = torch.einsum("tqd,sqd->qts", q_TQD, k_TQD) * scale
    weights_QTT = scores_QTT.masked_fill(~seen_TT, float("-inf")).softmax(-1)
    return torch.einsum("qts,sqd->tqd", weights_QTT, v_TQD)


def _by_document(q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    pieces = []
    for start, length, count in _runs(cu_seqlens.tolist()):
        rows = slice(start, start + length * count)
        batch = [x[rows].unflatten(0, (count, length)) for x in (q_TQD, k_TKD, v_TKD)]
        pieces.append(_sdpa(batch[0], batch[1], batch[2], scale).flatten(0, 1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _runs(borders: list[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbouring documents of one length as (first token, length, number of documents)."""
    start = borders[0]
    lengths = (after - before for before, after in pairwise(borders))
    for length, group in groupby(lengths):
        count = len(list(group))
        if length:
            yield start, length, count
        start += length * count


def _sdpa(q_BTQD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, scale: float, *, mask: Tensor | None = None) -> Tensor:
    """torch's attention with heads in the third place; causal where there is no mask."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTQD, k_BSKD, v_BSKD))
    shared = q.shape[1] != k.shape[1]
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared
    )
    return out.transpose(1, 2)


def _flash(q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor, max_length: int, scale: float) -> Tensor:
    function, options = _varlen()
    if k_TKD.shape[1] != q_TQD.shape[1] and "enable_gqa" not in options:
        group = q_TQD.shape[1] // k_TKD.shape[1]
        k_TKD, v_TKD = k_TKD.repeat_interleave(group, dim=1), v_TKD.repeat_interleave(group, dim=1)
    return function(q_TQD, k_TKD, v_TKD, cu_seqlens, cu_seqlens, max_length, max_length, scale=scale, **options)


@cache
def _varlen() -> tuple[Any, dict[str, Any]]:
    """torch's variable-length attention with the options that make it causal and grouped in the installed version."""
    from torch.nn.attention.varlen import varlen_attn  # loads CUDA libraries: only where it is used

    names = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    if "enable_gqa" in names:
        options["enable_gqa"] = True
    return varlen_attn, options
