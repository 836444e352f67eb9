"""Rotary position embedding of the queries and keys inside a packed qkv (Su et al. 2021, https://arxiv.org/abs/2104.09864).

A head is split into halves (a, b), as Hugging Face's checkpoints are laid out, and turned by the angle of its position:

    a' = a · cos - b · sin        b' = b · cos + a · sin

In: qkv [T, E] with E = (Q + 2K) · D, rows laid out as Q query heads, K key heads, K value heads; cos and sin fp32
[T, D/2]. Out: [T, E], values untouched. The reference casts the tables to
qkv's dtype first, as the published Llama code does; the kernel stays in fp32 and rounds once.
Kept for the backward pass: the tables only, since the gradient is the turn back.

Shapes: T tokens, E width of qkv, Q query heads, K key-value heads, D head size, R = Q + K turned heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whippet.kernels import triton_jit
from whippet.kernels.triton_jit import tl

HEADS = 8
"""Heads of one program."""


def rope(qkv_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    """Turn the query and key heads of ``qkv_TE``; return a new [T, E] in its dtype.

    ``cos_TD`` and ``sin_TD`` are fp32 [T, head_dim / 2] and get no gradient.
    """
    width = (num_heads + 2 * num_kv_heads) * head_dim
    assert qkv_TE.shape[-1] == width, f"qkv has width {qkv_TE.shape[-1]}, wanted {width}"
    return _Rope.apply(qkv_TE, cos_TD, sin_TD, num_heads + num_kv_heads, head_dim)


def turn_torch(
    qkv_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, turned_heads: int, head_dim: int, *, back: bool = False
) -> Tensor:
    """The definition: turn the first ``turned_heads`` heads (``back``: by the opposite angle), copy the rest."""
    cos_T1D = cos_TD.to(qkv_TE.dtype).unsqueeze(1)
    sin_T1D = (-sin_TD if back else sin_TD).to(qkv_TE.dtype).unsqueeze(1)
    out_TE = torch.empty_like(qkv_TE, memory_format=torch.contiguous_format)
    border = turned_heads * head_dim
    a_TRD, b_TRD = qkv_TE[:, :border].reshape(len(qkv_TE), turned_heads, head_dim).chunk(2, dim=-1)
    out_a_TRD, out_b_TRD = out_TE[:, :border].view(len(qkv_TE), turned_heads, head_dim).chunk(2, dim=-1)
    torch.mul(a_TRD, cos_T1D, out=out_a_TRD)
    out_a_TRD -= b_TRD * sin_T1D
    torch.mul(b_TRD, cos_T1D, out=out_b_TRD)
    out_b_TRD += a_TRD * sin_T1D
    out_TE[:, border:] = qkv_TE[:, border:]
    return out_TE


@triton_jit.jit
def _turn_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    x_stride,
    num_heads,
    turned_heads,
    BACK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, HALF_BLOCK)
    inside = columns < HALF
    cos = tl.load(cos_ptr + token * HALF + columns, mask=inside, other=1.0)
    sin = tl.load(sin_ptr + token * HALF + columns, mask=inside, other=0.0)
    if BACK:
        sin = -sin
    turned = (heads < turned_heads)[:, None]
    cos = tl.where(turned, cos[None, :], 1.0)
    sin = tl.where(turned, sin[None, :], 0.0)
    places = heads[:, None] * (2 * HALF) + columns[None, :]
    mask = (heads < num_heads)[:, None] & inside[None, :]
    a = tl.load(x_ptr + token * x_stride + places, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + token * x_stride + places + HALF, mask=mask, other=0.0).to(tl.float32)
    row_ptr = y_ptr + token * num_heads * 2 * HALF
    tl.store(row_ptr + places, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(row_ptr + places + HALF, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=mask)


def turn_triton(
    qkv_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, turned_heads: int, head_dim: int, *, back: bool = False
) -> Tensor:
    """As ``turn_torch``, in one pass, with fp32 tables."""
    x_TE = qkv_TE if qkv_TE.stride(-1) == 1 else qkv_TE.contiguous()
    out_TE = torch.empty(x_TE.shape, dtype=x_TE.dtype, device=x_TE.device)
    num_heads, half = x_TE.shape[1] // head_dim, head_dim // 2
    if len(x_TE):
        _turn_kernel[(len(x_TE), -(-num_heads // HEADS))](
            x_TE,
            cos_TD.float().contiguous(),
            sin_TD.float().contiguous(),
            out_TE,
            x_TE.stride(0),
            num_heads,
            turned_heads,
            BACK=back,
            HALF=half,
            HALF_BLOCK=triton_jit.power_of_two(half),
            HEADS=HEADS,
        )
    return out_TE


def turn(
    qkv_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, turned_heads: int, head_dim: int, *, back: bool = False
) -> Tensor:
    """As ``turn_torch``, by whatever runs there; without a graph."""
    run = turn_triton if triton_jit.usable(qkv_TE) else turn_torch
    return run(qkv_TE, cos_TD, sin_TD, turned_heads, head_dim, back=back)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, turned_heads: int, head_dim: int) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        ctx.heads = turned_heads, head_dim
        return turn(qkv_TE, cos_TD, sin_TD, turned_heads, head_dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        cos_TD, sin_TD = ctx.saved_tensors
        return turn(grad_TE, cos_TD, sin_TD, *ctx.heads, back=True), None, None, None, None
