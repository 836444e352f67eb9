"""RMS norm of each head of queries and keys, and then their rotary embedding, in one pass over a packed qkv.

    n = x / sqrt(mean(x²) + eps) over the head        y = turn(w · n)        (``rms_norm.py``, ``rope.py``)

Queries of all heads share one w [D], keys another; values pass untouched. With ``offset`` the scale is 1 + w, as in
Gemma's norms.

In: qkv [T, E] with E = (Q + 2K) · D as in ``rope.py``; cos and sin fp32 [T, D/2]. Out: [T, E]. Kept for the backward
pass: qkv and the tables; norms are computed again.

Shapes: T tokens, Q query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whippet.kernels import rms_norm, triton_jit
from whippet.kernels.rope import HEADS, turn
from whippet.kernels.triton_jit import tl


def norm_and_rope(
    qkv_TE: Tensor,
    q_weight_D: Tensor,
    k_weight_D: Tensor,
    eps: float,
    cos_TD: Tensor,
    sin_TD: Tensor,
    num_heads: int,
    num_kv_heads: int,
    *,
    offset: bool = False,
) -> Tensor:
    """Normalise and turn the query and key heads of ``qkv_TE``; return a new [T, E] in its dtype."""
    width = (num_heads + 2 * num_kv_heads) * len(q_weight_D)
    assert qkv_TE.shape[-1] == width, f"qkv has width {qkv_TE.shape[-1]}, wanted {width}"
    heads = num_heads, num_kv_heads
    return _NormAndRope.apply(qkv_TE, q_weight_D, k_weight_D, eps, cos_TD, sin_TD, heads, offset)


def forward_torch(
    qkv_TE: Tensor,
    weights: tuple[Tensor, Tensor],
    eps: float,
    cos_TD: Tensor,
    sin_TD: Tensor,
    heads: tuple[int, int],
    offset: bool,
) -> Tensor:
    """The definition."""
    head_dim = len(weights[0])
    normed_TE = torch.empty_like(qkv_TE, memory_format=torch.contiguous_format)
    by_head_THD, out_THD = qkv_TE.unflatten(-1, (-1, head_dim)), normed_TE.unflatten(-1, (-1, head_dim))
    for rows, weight_D in zip(_rows(heads), weights, strict=True):
        out_THD[:, rows] = rms_norm.forward_torch(by_head_THD[:, rows], weight_D, eps, offset=offset)[0]
    out_THD[:, sum(heads) :] = by_head_THD[:, sum(heads) :]
    return turn(normed_TE, cos_TD, sin_TD, sum(heads), head_dim)


def backward_torch(
    back_TE: Tensor, qkv_TE: Tensor, weights: tuple[Tensor, Tensor], eps: float, heads: tuple[int, int], offset: bool
) -> Tensor:
    """The norms' part, of a gradient that has been turned back."""
    head_dim = len(weights[0])
    dx_TE = torch.empty_like(back_TE)
    dx_THD, back_THD, x_THD = (x.unflatten(-1, (-1, head_dim)) for x in (dx_TE, back_TE, qkv_TE))
    for rows, weight_D in zip(_rows(heads), weights, strict=True):
        rstd_TH1 = _rstd(x_THD[:, rows], eps)
        dx_THD[:, rows] = rms_norm.backward_torch(back_THD[:, rows], x_THD[:, rows], weight_D, rstd_TH1, offset=offset)
    dx_THD[:, sum(heads) :] = back_THD[:, sum(heads) :]
    return dx_TE


def weight_gradients(
    back_TE: Tensor, qkv_TE: Tensor, weights: tuple[Tensor, Tensor], eps: float, heads: tuple[int, int], offset: bool
) -> list[Tensor]:
    """dw of both, each the sum over its heads and tokens."""
    head_dim, grads = len(weights[0]), []
    for rows, weight_D in zip(_rows(heads), weights, strict=True):
        back_ND, x_ND = (x.unflatten(-1, (-1, head_dim))[:, rows].flatten(0, 1) for x in (back_TE, qkv_TE))
        grads.append(rms_norm.weight_gradient(back_ND, x_ND, weight_D, _rstd(x_ND, eps), offset=offset))
    return grads


def _rows(heads: tuple[int, int]) -> tuple[slice, slice]:
    """Heads that are queries, and keys."""
    return slice(0, heads[0]), slice(heads[0], sum(heads))


def _rstd(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)


@triton_jit.jit
def _kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    grad_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    x_stride,
    grad_stride,
    num_heads,
    query_heads,
    turned_heads,
    eps,
    BACK: tl.constexpr,
    OFFSET: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, HALF_BLOCK)
    inside = columns < HALF
    kind = y_ptr.dtype.element_ty
    turned, of_query = (heads < turned_heads)[:, None], (heads < query_heads)[:, None]
    cos = tl.where(turned, tl.load(cos_ptr + token * HALF + columns, mask=inside, other=1.0)[None, :], 1.0)
    sin = tl.where(turned, tl.load(sin_ptr + token * HALF + columns, mask=inside, other=0.0)[None, :], 0.0)
    places = heads[:, None] * (2 * HALF) + columns[None, :]
    mask = (heads < num_heads)[:, None] & inside[None, :]
    a = tl.load(x_ptr + token * x_stride + places, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + token * x_stride + places + HALF, mask=mask, other=0.0).to(tl.float32)
    q_a, q_b = (
        tl.load(q_weight_ptr + columns, mask=inside, other=0.0),
        tl.load(q_weight_ptr + HALF + columns, mask=inside, other=0.0),
    )
    k_a, k_b = (
        tl.load(k_weight_ptr + columns, mask=inside, other=0.0),
        tl.load(k_weight_ptr + HALF + columns, mask=inside, other=0.0),
    )
    weight_a = tl.where(of_query, q_a[None, :], k_a[None, :])
    weight_b = tl.where(of_query, q_b[None, :], k_b[None, :])
    rstd = 1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF) + eps)
    n_a, n_b = a * rstd[:, None], b * rstd[:, None]
    if OFFSET:
        weight_a, weight_b = 1.0 + weight_a.to(tl.float32), 1.0 + weight_b.to(tl.float32)
    else:
        weight_a, weight_b = weight_a.to(kind).to(tl.float32), weight_b.to(kind).to(tl.float32)
    row_ptr = y_ptr + token * num_heads * 2 * HALF
    if BACK:
        g_a = tl.load(grad_ptr + token * grad_stride + places, mask=mask, other=0.0).to(tl.float32)
        g_b = tl.load(grad_ptr + token * grad_stride + places + HALF, mask=mask, other=0.0).to(tl.float32)
        back_a, back_b = g_a * cos + g_b * sin, g_b * cos - g_a * sin
        scaled_a, scaled_b = back_a * weight_a, back_b * weight_b
        mean = ((tl.sum(scaled_a * n_a, axis=1) + tl.sum(scaled_b * n_b, axis=1)) / (2 * HALF))[:, None]
        y_a = tl.where(turned, rstd[:, None] * (scaled_a - n_a * mean), g_a)
        y_b = tl.where(turned, rstd[:, None] * (scaled_b - n_b * mean), g_b)
    else:
        if not OFFSET:  # the quotient is rounded before the product
            n_a, n_b = n_a.to(kind).to(tl.float32), n_b.to(kind).to(tl.float32)
        n_a, n_b = tl.where(turned, n_a * weight_a, a), tl.where(turned, n_b * weight_b, b)
        y_a, y_b = n_a * cos - n_b * sin, n_b * cos + n_a * sin
    tl.store(row_ptr + places, y_a.to(kind), mask=mask)
    tl.store(row_ptr + places + HALF, y_b.to(kind), mask=mask)


def run_triton(
    qkv_TE: Tensor,
    grad_TE: Tensor | None,
    weights: tuple[Tensor, Tensor],
    eps: float,
    cos_TD: Tensor,
    sin_TD: Tensor,
    heads: tuple[int, int],
    offset: bool,
) -> Tensor:
    """Forward, or backward for ``grad_TE``: norm and turn in one pass each, with fp32 between."""
    x_TE = qkv_TE if qkv_TE.stride(-1) == 1 else qkv_TE.contiguous()
    other_TE = x_TE if grad_TE is None else grad_TE if grad_TE.stride(-1) == 1 else grad_TE.contiguous()
    out_TE = torch.empty(x_TE.shape, dtype=x_TE.dtype, device=x_TE.device)
    head_dim = len(weights[0])
    num_heads, half = x_TE.shape[1] // head_dim, head_dim // 2
    if len(x_TE):
        _kernel[(len(x_TE), -(-num_heads // HEADS))](
            x_TE,
            other_TE,
            weights[0].contiguous(),
            weights[1].contiguous(),
            cos_TD.float().contiguous(),
            sin_TD.float().contiguous(),
            out_TE,
            x_TE.stride(0),
            other_TE.stride(0),
            num_heads,
            heads[0],
            sum(heads),
            eps,
            BACK=grad_TE is not None,
            OFFSET=offset,
            HALF=half,
            HALF_BLOCK=triton_jit.power_of_two(half),
            HEADS=HEADS,
        )
    return out_TE


class _NormAndRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_TE: Tensor,
        q_weight_D: Tensor,
        k_weight_D: Tensor,
        eps: float,
        cos_TD: Tensor,
        sin_TD: Tensor,
        heads: tuple[int, int],
        offset: bool,
    ) -> Tensor:
        ctx.save_for_backward(qkv_TE, q_weight_D, k_weight_D)
        # Not among what is saved, and may be parked for each layer: all layers share them.
        ctx.settings = eps, cos_TD, sin_TD, heads, offset
        weights = q_weight_D, k_weight_D
        if triton_jit.usable(qkv_TE):
            return run_triton(qkv_TE, None, weights, eps, cos_TD, sin_TD, heads, offset)
        return forward_torch(qkv_TE, weights, eps, cos_TD, sin_TD, heads, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        qkv_TE, q_weight_D, k_weight_D = ctx.saved_tensors
        eps, cos_TD, sin_TD, heads, offset = ctx.settings
        weights, wanted = (q_weight_D, k_weight_D), any(ctx.needs_input_grad[1:3])
        by_kernel = triton_jit.usable(qkv_TE)
        dx_TE: Tensor | None = None
        grads: list[Tensor | None] = [None, None]
        if by_kernel and ctx.needs_input_grad[0]:
            dx_TE = run_triton(qkv_TE, grad_TE, weights, eps, cos_TD, sin_TD, heads, offset)
        if wanted or not by_kernel:
            back_TE = turn(grad_TE, cos_TD, sin_TD, sum(heads), len(q_weight_D), back=True)
            dx_TE = dx_TE if by_kernel else backward_torch(back_TE, qkv_TE, weights, eps, heads, offset)
            grads = [*weight_gradients(back_TE, qkv_TE, weights, eps, heads, offset)] if wanted else grads
        return dx_TE, *grads, None, None, None, None, None
