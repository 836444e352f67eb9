"""Causal attention by blocks of queries in plain torch, with a soft cap and a window, forward and backward.

    s_ts = scale · q_t · k_s        z = c · tanh(s / c)        out_t = Σ softmax_s(z_ts) · v_s        t - window < s ≤ t

    P = softmax(z), dP = dout · vᵀ:    dz = P · (dP - Σ P · dP)    ds = dz · (1 - (z / c)²) · scale

It serves where no kernel does (``attention.py`` says where): a block meets only the keys of its windows, and the scores
of one block are all that ever exists. Everything is computed in fp32. Kept: q, k and v; a block has all of its rows, so
that weights are computed again without anything else.

Shapes: B documents of T tokens each, Q query heads, K key-value heads, G = Q / K, D head size, C queries of a block,
S keys that they meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whippet.kernels.softcap import capped_, slope

BLOCK = 256
"""Queries of a block."""


def block_attention(
    q_BTQD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    """Attention inside each of B documents; ``window`` 0: to all tokens before. Returns [B, T, Q, D] in q's dtype."""
    return _BlockAttention.apply(q_BTQD, k_BTKD, v_BTKD, scale, window, softcap)


def blocks(tokens: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, and the keys that each of them may meet."""
    for start in range(0, tokens, BLOCK):
        stop = min(start + BLOCK, tokens)
        yield slice(start, stop), slice(max(0, start - window + 1) if window else 0, stop)


def seen(queries: slice, keys: slice, window: int, device: torch.device) -> Tensor:
    """Which keys each query attends to, bool [C, S]."""
    at_C1 = torch.arange(queries.start, queries.stop, device=device).view(-1, 1)
    at_S = torch.arange(keys.start, keys.stop, device=device)
    seen_CS = at_S <= at_C1
    if window:
        seen_CS &= at_S > at_C1 - window
    return seen_CS


def grouped_scores(q_BCQD: Tensor, k_BSKD: Tensor, scale: float, softcap: float) -> Tensor:
    """z, fp32 [B, K, G, C, S]."""
    groups = q_BCQD.shape[2] // k_BSKD.shape[2]
    q_BCKGD = q_BCQD.float().unflatten(2, (-1, groups)) * scale
    return capped_(torch.einsum("bckgd,bskd->bkgcs", q_BCKGD, k_BSKD.float()), softcap)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BTQD: Tensor,
        k_BTKD: Tensor,
        v_BTKD: Tensor,
        scale: float,
        window: int,
        softcap: float,
    ) -> Tensor:
        out_BTQD = torch.empty_like(q_BTQD, memory_format=torch.contiguous_format)
        for queries, keys in blocks(q_BTQD.shape[1], window):
            z_BKGCS = _masked(q_BTQD, k_BTKD, queries, keys, scale, window, softcap)
            out_BCKGD = torch.einsum("bkgcs,bskd->bckgd", z_BKGCS.softmax(-1), v_BTKD[:, keys].float())
            out_BTQD[:, queries] = out_BCKGD.flatten(2, 3).to(out_BTQD.dtype)
        ctx.save_for_backward(q_BTQD, k_BTKD, v_BTKD)
        ctx.settings = scale, window, softcap
        return out_BTQD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTQD: Tensor) -> tuple[Tensor | None, ...]:
        q_BTQD, k_BTKD, v_BTKD = ctx.saved_tensors
        scale, window, softcap = ctx.settings
        groups = q_BTQD.shape[2] // k_BTKD.shape[2]
        dq_BTQD = torch.empty_like(q_BTQD, memory_format=torch.contiguous_format)
        dk_BTKD, dv_BTKD = (torch.zeros_like(x, dtype=torch.float32) for x in (k_BTKD, v_BTKD))
        for queries, keys in blocks(q_BTQD.shape[1], window):
            z_BKGCS = _masked(q_BTQD, k_BTKD, queries, keys, scale, window, softcap)
            weights_BKGCS = z_BKGCS.softmax(-1)
            grad_BCKGD = grad_BTQD[:, queries].float().unflatten(2, (-1, groups))
            dv_BTKD[:, keys] += torch.einsum("bkgcs,bckgd->bskd", weights_BKGCS, grad_BCKGD)
            ds_BKGCS = torch.einsum("bckgd,bskd->bkgcs", grad_BCKGD, v_BTKD[:, keys].float())
            ds_BKGCS = torch._softmax_backward_data(ds_BKGCS, weights_BKGCS, -1, torch.float32).mul_(scale)
            # Where the mask is, z is -inf and the weight 0.
            ds_BKGCS.mul_(slope(z_BKGCS, softcap)).masked_fill_(z_BKGCS.isinf(), 0.0)
            dq_BCKGD = torch.einsum("bkgcs,bskd->bckgd", ds_BKGCS, k_BTKD[:, keys].float())
            dq_BTQD[:, queries] = dq_BCKGD.flatten(2, 3).to(dq_BTQD.dtype)
            q_BCKGD = q_BTQD[:, queries].float().unflatten(2, (-1, groups))
            dk_BTKD[:, keys] += torch.einsum("bkgcs,bckgd->bskd", ds_BKGCS, q_BCKGD)
        return dq_BTQD, dk_BTKD.to(k_BTKD.dtype), dv_BTKD.to(v_BTKD.dtype), None, None, None


def _masked(
    q_BTQD: Tensor,
    k_BTKD: Tensor,
    queries: slice,
    keys: slice,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """z of one block, and -inf where a query does not attend."""
    z_BKGCS = grouped_scores(q_BTQD[:, queries], k_BTKD[:, keys], scale, softcap)
    return z_BKGCS.masked_fill_(~seen(queries, keys, window, q_BTQD.device), float("-inf"))
