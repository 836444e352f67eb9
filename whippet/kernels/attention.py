"""Causal attention over a packed stream, and over a key-value cache.

    out_t = sum over s ≤ t of softmax_s(scale · q_t · k_s) · v_s,  s and t in the same document

A layer may have a window, in which case s > t - window too, and a soft cap (``softcap.py``) on what goes into softmax.
Query heads share key-value heads in groups (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245): query head h reads
key-value head h // (Q / K). Who computes the packed form is chosen by what there is (``backend``):

    flash-attn-4        Hopper and Blackwell, where it is installed (pip install 'whippet[gpu]'), heads up to 128, and
                        with a cap on Hopper up to 256
    flash-attention-2   other CUDA cards from Ampere on, in 16 bit: the one inside torch; it knows windows, and no cap
    sdpa                everywhere else: each run of documents of one length is a batch of torch's
                        scaled_dot_product_attention, so that no row ever meets another document; by blocks of
                        queries under a window that is shorter than they are; with a cap ``block_attention.py``

All of them keep q, k, v, the output and one fp32 number a query for the backward pass; no key is repeated.

Shapes: T tokens, D head size, Q query heads, K key-value heads, B rows of a batch, S cached positions.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from whippet.kernels.block_attention import BLOCK, block_attention, blocks, grouped_scores, seen

Backend = Literal["flash-attn-4", "flash-attention-2", "sdpa"]
MOST_HEAD_DIM = 256
"""Of both FlashAttentions, forward and backward; flash-attn-4 takes up to 128 on Blackwell where there is a cap."""


def packed_attention(
    q_TQD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention inside each document of a packed stream.

    ``cu_seqlens``: int32 [documents + 1], the borders, from 0 to T. ``max_length``: tokens of the longest document.
    ``window``: tokens that a query attends to, its own among them; 0: all. Returns [T, Q, D] in q's dtype.
    """
    window = window if window < max_length else 0
    chosen = backend(q_TQD.device, q_TQD.dtype, q_TQD.shape[-1], softcap is not None)
    if chosen == "flash-attn-4":
        return _flash_attn_4(q_TQD, k_TKD, v_TKD, cu_seqlens, max_length, scale, window, softcap)
    if chosen == "flash-attention-2":
        return _FlashAttention2.apply(q_TQD, k_TKD, v_TKD, cu_seqlens, max_length, scale, window)
    return _by_document(q_TQD, k_TKD, v_TKD, cu_seqlens, scale, window, softcap)


@cache
def backend(device: torch.device, dtype: torch.dtype, head_dim: int, capped: bool = False) -> Backend:
    """Who computes ``packed_attention`` there, with a soft cap or without."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim > MOST_HEAD_DIM:
        return "sdpa"
    generation, _ = torch.cuda.get_device_capability(device)
    # Wider heads are torch's; but that knows no cap.
    widest = MOST_HEAD_DIM if capped and generation == 9 else 128
    if generation in (9, 10) and head_dim <= widest and head_dim % 8 == 0 and _is_installed("flash_attn.cute"):
        return "flash-attn-4"
    return "flash-attention-2" if generation >= 8 and not capped else "sdpa"


def cached_attention(
    q_BTQD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    lengths_B: Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> Tensor:
    """Attention of the newest T tokens of each row over its cache.

    ``lengths_B``: valid cache positions of each row, the new tokens among them. The query at t of row b attends to the
    positions 0 … lengths_b - T + t, or to the last ``window`` of them. Returns [B, T, Q, D] in q's dtype.
    """
    num_new, num_slots = q_BTQD.shape[1], k_BSKD.shape[1]
    steps_T = torch.arange(num_new, device=q_BTQD.device)
    slots_S = torch.arange(num_slots, device=q_BTQD.device)
    last_BT = lengths_B.to(q_BTQD.device).view(-1, 1) - num_new + steps_T
    seen_BTS = slots_S <= last_BT.unsqueeze(-1)
    if window:
        seen_BTS &= slots_S > last_BT.unsqueeze(-1) - window
    if softcap is None:
        return _sdpa(q_BTQD, k_BSKD, v_BSKD, scale, mask=seen_BTS.unsqueeze(1))
    pieces = [
        _capped(q_BTQD[:, steps], k_BSKD, v_BSKD, seen_BTS[:, steps], scale, softcap)
        for steps in (slice(start, start + BLOCK) for start in range(0, num_new, BLOCK))
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _capped(q_BTQD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, seen_BTS: Tensor, scale: float, softcap: float) -> Tensor:
    z_BKGTS = grouped_scores(q_BTQD, k_BSKD, scale, softcap)
    weights_BKGTS = z_BKGTS.masked_fill_(~seen_BTS[:, None, None], float("-inf")).softmax(-1)
    return torch.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BSKD.float()).flatten(2, 3).to(q_BTQD.dtype)


def naive_attention(
    q_TQD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> Tensor:
    """The definition, with the whole [Q, T, T] matrix of scores: the oracle for every other path."""
    num_tokens, num_heads, _ = q_TQD.shape
    group = num_heads // k_TKD.shape[1]
    k_TQD, v_TQD = k_TKD.repeat_interleave(group, dim=1), v_TKD.repeat_interleave(group, dim=1)
    places_T = torch.arange(num_tokens, device=q_TQD.device)
    document_T = torch.bucketize(places_T, cu_seqlens[1:].to(places_T.dtype), right=True)
    same_TT = document_T.view(-1, 1) == document_T
    seen_TT = same_TT & (places_T <= places_T.view(-1, 1))
    if window:
        seen_TT &= places_T > places_T.view(-1, 1) - window
    scores_QTT = torch.einsum("tqd,sqd->qts", q_TQD, k_TQD) * scale
    if softcap is not None:
        scores_QTT = softcap * torch.tanh(scores_QTT / softcap)
    weights_QTT = scores_QTT.masked_fill(~seen_TT, float("-inf")).softmax(-1)
    return torch.einsum("qts,sqd->tqd", weights_QTT, v_TQD)


def _by_document(
    q_TQD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int,
    softcap: float | None,
) -> Tensor:
    pieces = []
    for start, length, count in _runs(cu_seqlens.tolist()):
        rows = slice(start, start + length * count)
        batch = [x[rows].unflatten(0, (count, length)) for x in (q_TQD, k_TKD, v_TKD)]
        if softcap is None and (not window or length <= window):
            out_BTQD = _sdpa(batch[0], batch[1], batch[2], scale)
        elif softcap is None:
            out_BTQD = _windowed(batch[0], batch[1], batch[2], scale, window)
        else:
            out_BTQD = block_attention(batch[0], batch[1], batch[2], scale, window, softcap)
        pieces.append(out_BTQD.flatten(0, 1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _windowed(q_BTQD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, scale: float, window: int) -> Tensor:
    """By blocks of queries, so that one meets few keys beside its windows."""
    pieces = []
    for queries, keys in blocks(q_BTQD.shape[1], window):
        mask_CS = seen(queries, keys, window, q_BTQD.device)
        pieces.append(_sdpa(q_BTQD[:, queries], k_BTKD[:, keys], v_BTKD[:, keys], scale, mask=mask_CS))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


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


def _flash_attn_4(
    q_TQD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scale: float,
    window: int,
    softcap: float | None,
) -> Tensor:
    # How many keys before its own a query meets; with None it is told of no window, and takes the kernel without.
    before = (window - 1, 0) if window else (None, None)
    result = _flash_attn_4_function()(
        q_TQD,
        k_TKD,
        v_TKD,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_length,
        max_seqlen_k=max_length,
        softmax_scale=scale,
        causal=True,
        window_size=before,
        softcap=softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return result[0] if isinstance(result, tuple) else result


@cache
def _flash_attn_4_function() -> Any:
    """Imported when first called for: it compiles its kernels then, for ten seconds. It can keep them on disk, which
    it does not by default, nor in a folder that is the user's alone."""
    folder = _kernel_folder()
    if folder is not None:
        os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(folder))
        os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    # It tells its own developers about an argument that it passes itself.
    warnings.filterwarnings("ignore", message="Argument aux_data", category=UserWarning)
    return importlib.import_module("flash_attn.cute").flash_attn_varlen_func


def _kernel_folder() -> Path | None:
    """``~/.cache/whippet/flash-attn-4``, if nobody else can write there: what lies in it is executed."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        home = Path(base).expanduser()
        folder = home / "whippet" / "flash-attn-4"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever can write to a folder above can put another in its place.
        safe = all(_is_ours(place) for place in (folder, folder.parent, home))
    except (OSError, RuntimeError):  # a home that is read-only, or none
        return None
    return folder if safe else None


def _is_ours(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


class _FlashAttention2(torch.autograd.Function):
    """The operators below torch's ``varlen_attn``, which in torch 2.11 takes no grouped heads though they do."""

    @staticmethod
    def forward(
        ctx: Any,
        q_TQD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        scale: float,
        window: int,
    ) -> Tensor:
        before = {"window_size_left": window - 1, "window_size_right": 0} if window else {}
        out_TQD, lse_QT, random, unused, _ = torch.ops.aten._flash_attention_forward(
            q_TQD, k_TKD, v_TKD, cu_seqlens, cu_seqlens, max_length, max_length, 0.0, True, False, scale=scale, **before
        )
        ctx.before = before
        ctx.save_for_backward(q_TQD, k_TKD, v_TKD, out_TQD, lse_QT, cu_seqlens, random, unused)
        ctx.max_length, ctx.scale = max_length, scale
        return out_TQD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TQD: Tensor) -> tuple[Tensor | None, ...]:
        q_TQD, k_TKD, v_TKD, out_TQD, lse_QT, borders, random, unused = ctx.saved_tensors
        grads = torch.ops.aten._flash_attention_backward(
            grad_TQD.contiguous(), q_TQD, k_TKD, v_TKD, out_TQD, lse_QT, borders, borders, ctx.max_length,
            ctx.max_length, 0.0, True, random, unused, scale=ctx.scale, **ctx.before,
        )  # fmt: skip
        return (*grads, None, None, None, None)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package above it
        return False
