"""Root-mean-square normalisation, alone and together with the residual sum before it.

    y = w · x / sqrt(mean(x²) + eps)        (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)

The mean and the division run in fp32; the quotient is rounded to x's dtype before it is multiplied by w, as in the
published Llama code, so that logits agree with it in every dtype. Gemma's norms have an ``offset``: they scale by
1 + w, all in fp32, and round once.

In: x [T, H] in any float dtype, w [H]. Out: y [T, H] in x's dtype. Kept for the backward pass: x and one fp32 number
a row.

Shapes: T tokens, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whippet.kernels import triton_jit
from whippet.kernels.fp8 import LARGEST, LEAST, FP8Tensor, factors, quantize_rows
from whippet.kernels.triton_jit import tl


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float, room: int = 0, *, offset: bool = False) -> Tensor:
    """Normalise each row of ``x_TH`` to a root mean square of one and scale it by ``weight_H``, or by 1 plus that.

    Returns [T, H] in x's dtype. ``weight_H`` is cast to x's dtype (with ``offset`` to fp32); its gradient, if asked
    for, is summed in fp32. With ``room`` each row of the result is followed by that many unused numbers
    (``frozen_linear`` writes there).
    """
    return _RMSNorm.apply(x_TH, weight_H, eps, room, offset)


def add_rms_norm(
    x_TH: Tensor,
    residual_TH: Tensor | None,
    weight_H: Tensor,
    eps: float,
    room: int = 0,
    rows: FP8Tensor | None = None,
    *,
    offset: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return ``(rms_norm(s), s)`` with ``s = x_TH + residual_TH``, both [T, H] in x's dtype; ``room``, ``offset`` as
    there.

    Without a residual s is x itself, which two branches read then: their gradients are added in the pass that forms
    one. ``rows``, if it is there, becomes rms_norm(s) in FP8.
    """
    return _AddRMSNorm.apply(x_TH, residual_TH, weight_H, eps, room, rows, offset)


def forward_torch(x_TH: Tensor, weight_H: Tensor, eps: float, *, offset: bool = False) -> tuple[Tensor, Tensor]:
    """The definition. Returns y [T, H] and 1 / sqrt(mean(x²) + eps), fp32 [T, 1]."""
    x32_TH = x_TH.float()
    rstd_T1 = torch.rsqrt(x32_TH.pow(2).mean(-1, keepdim=True) + eps)
    if offset:
        return (x32_TH * rstd_T1 * (1 + weight_H.float())).to(x_TH.dtype), rstd_T1
    return weight_H.to(x_TH.dtype) * (x32_TH * rstd_T1).to(x_TH.dtype), rstd_T1


def backward_torch(grad_TH: Tensor, x_TH: Tensor, weight_H: Tensor, rstd_T1: Tensor, *, offset: bool = False) -> Tensor:
    """dx in x's dtype: with n = x · rstd and h = g · w (or g · (1 + w)), dx = rstd · (h - n · mean(h · n))."""
    normed_TH = x_TH.float() * rstd_T1
    scaled_TH = grad_TH.float() * (1 + weight_H.float() if offset else weight_H.to(x_TH.dtype).float())
    dx_TH = rstd_T1 * (scaled_TH - normed_TH * (scaled_TH * normed_TH).mean(-1, keepdim=True))
    return dx_TH.to(x_TH.dtype)


def weight_gradient(
    grad_TH: Tensor, x_TH: Tensor, weight_H: Tensor, rstd_T1: Tensor, *, offset: bool = False
) -> Tensor:
    """dw in w's dtype: the sum over rows of g · n, in fp32."""
    normed_TH = x_TH.float() * rstd_T1
    normed_TH = normed_TH if offset else normed_TH.to(x_TH.dtype)
    return (grad_TH.float() * normed_TH).sum(0).to(weight_H.dtype)


@triton_jit.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    residual_ptr,
    weight_ptr,
    sum_ptr,
    y_ptr,
    rstd_ptr,
    codes_ptr,
    scales_ptr,
    x_stride,
    residual_stride,
    y_stride,
    width,
    eps,
    ADD: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    if ADD:
        residual = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * width + columns, x, mask=inside)
    x32 = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x32 * x32, axis=0) / width + eps)
    tl.store(rstd_ptr + row, rstd)
    normed, weight = x32 * rstd, tl.load(weight_ptr + columns, mask=inside, other=0.0)
    if OFFSET:
        weight = 1.0 + weight.to(tl.float32)
    else:
        # The quotient is rounded before the product, as in the reference.
        normed = normed.to(y_ptr.dtype.element_ty).to(tl.float32)
        weight = weight.to(y_ptr.dtype.element_ty).to(tl.float32)
    y = (normed * weight).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * y_stride + columns, y, mask=inside)
    if ROWS:
        # What is rounded to FP8 is what the adapter reads.
        y = y.to(tl.float32)
        up, down = factors(tl.max(tl.abs(y), axis=0), LARGEST, LEAST)
        tl.store(codes_ptr + row * width + columns, (y * up).to(codes_ptr.dtype.element_ty), mask=inside)
        tl.store(scales_ptr + row, down)


@triton_jit.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    grad_sum_ptr,
    dx_ptr,
    grad_stride,
    x_stride,
    grad_sum_stride,
    width,
    ADD: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x32 = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    if OFFSET:
        weight = 1.0 + weight.to(tl.float32)
    else:
        weight = weight.to(dx_ptr.dtype.element_ty).to(tl.float32)
    rstd = tl.load(rstd_ptr + row)
    normed = x32 * rstd
    scaled = grad * weight
    dx = rstd * (scaled - normed * (tl.sum(scaled * normed, axis=0) / width))
    if ADD:
        dx += tl.load(grad_sum_ptr + row * grad_sum_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + row * width + columns, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def forward_triton(
    x_TH: Tensor,
    residual_TH: Tensor | None,
    weight_H: Tensor,
    eps: float,
    room: int = 0,
    rows: FP8Tensor | None = None,
    *,
    offset: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum that was normalised (x itself without a residual) and rstd fp32 [T, 1], in one pass."""
    num_rows, width = x_TH.shape
    x_TH = _dense_rows(x_TH)
    add = residual_TH is not None
    other_TH = x_TH if residual_TH is None else _dense_rows(residual_TH)
    y_TH = _with_room(x_TH, room)
    sum_TH = torch.empty_like(x_TH, memory_format=torch.contiguous_format) if add else x_TH
    rstd_T1 = torch.empty(num_rows, 1, dtype=torch.float32, device=x_TH.device)
    block = triton_jit.power_of_two(width)
    if num_rows:
        _forward_kernel[(num_rows,)](
            x_TH,
            other_TH,
            weight_H.contiguous(),
            sum_TH,
            y_TH,
            rstd_T1,
            y_TH if rows is None else rows.codes,
            rstd_T1 if rows is None else rows.scales,
            x_TH.stride(0),
            other_TH.stride(0),
            y_TH.stride(0),
            width,
            eps,
            ADD=add,
            OFFSET=offset,
            ROWS=rows is not None,
            LARGEST=LARGEST,
            LEAST=LEAST,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return y_TH, sum_TH, rstd_T1


def backward_triton(
    grad_TH: Tensor,
    x_TH: Tensor,
    weight_H: Tensor,
    rstd_T1: Tensor,
    grad_sum_TH: Tensor | None,
    *,
    offset: bool = False,
) -> Tensor:
    """dx [T, H] plus ``grad_sum_TH`` if that is given."""
    num_rows, width = x_TH.shape
    grad_TH, x_TH = _dense_rows(grad_TH), _dense_rows(x_TH)
    other_TH = grad_TH if grad_sum_TH is None else _dense_rows(grad_sum_TH)
    dx_TH = torch.empty_like(x_TH, memory_format=torch.contiguous_format)
    block = triton_jit.power_of_two(width)
    if num_rows:
        _backward_kernel[(num_rows,)](
            grad_TH,
            x_TH,
            weight_H.contiguous(),
            rstd_T1,
            other_TH,
            dx_TH,
            grad_TH.stride(0),
            x_TH.stride(0),
            other_TH.stride(0),
            width,
            ADD=grad_sum_TH is not None,
            OFFSET=offset,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return dx_TH


def _with_room(like_TH: Tensor, room: int) -> Tensor:
    """An empty tensor of the same shape whose rows are ``room`` numbers apart."""
    rows = like_TH.new_empty(len(like_TH), like_TH.shape[1] + room)
    return triton_jit.wider(rows[:, : like_TH.shape[1]], 0) if room else rows


def _dense_rows(x_TH: Tensor) -> Tensor:
    return x_TH if x_TH.stride(-1) == 1 else x_TH.contiguous()


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


def _forward(
    x_TH: Tensor,
    residual_TH: Tensor | None,
    weight_H: Tensor,
    eps: float,
    room: int,
    rows: FP8Tensor | None,
    offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if triton_jit.usable(x_TH):
        return forward_triton(x_TH, residual_TH, weight_H, eps, room, rows, offset=offset)
    sum_TH = x_TH if residual_TH is None else x_TH + residual_TH
    y_TH, rstd_T1 = forward_torch(sum_TH, weight_H, eps, offset=offset)
    if room:
        y_TH = _with_room(x_TH, room).copy_(y_TH)
    if rows is not None:
        made = quantize_rows(y_TH)
        rows.codes.copy_(made.codes)
        rows.scales.copy_(made.scales)
    return y_TH, sum_TH, rstd_T1


def _backward(grad_TH: Tensor, saved: tuple[Tensor, ...], grad_sum_TH: Tensor | None, offset: bool) -> Tensor:
    x_TH, weight_H, rstd_T1 = saved
    if triton_jit.usable(x_TH):
        return backward_triton(grad_TH, x_TH, weight_H, rstd_T1, grad_sum_TH, offset=offset)
    dx_TH = backward_torch(grad_TH, x_TH, weight_H, rstd_T1, offset=offset)
    return dx_TH if grad_sum_TH is None else dx_TH + grad_sum_TH


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, weight_H: Tensor, eps: float, room: int, offset: bool) -> Tensor:
        y_TH, _, rstd_T1 = _forward(x_TH, None, weight_H, eps, room, None, offset)
        ctx.save_for_backward(x_TH, weight_H, rstd_T1)
        ctx.offset = offset
        return y_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        dw_H = weight_gradient(grad_TH, *saved, offset=ctx.offset) if ctx.needs_input_grad[1] else None
        return _backward(grad_TH, saved, None, ctx.offset), dw_H, None, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TH: Tensor,
        residual_TH: Tensor | None,
        weight_H: Tensor,
        eps: float,
        room: int,
        rows: FP8Tensor | None,
        offset: bool,
    ) -> tuple[Tensor, Tensor]:
        y_TH, sum_TH, rstd_T1 = _forward(x_TH, residual_TH, weight_H, eps, room, rows, offset)
        ctx.offset = offset
        sum_TH = x_TH if residual_TH is None else sum_TH  # a kernel may have read a copy with dense rows
        ctx.save_for_backward(sum_TH, weight_H, rstd_T1)
        return y_TH, sum_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor, grad_sum_TH: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        dw_H = weight_gradient(grad_TH, *saved, offset=ctx.offset) if ctx.needs_input_grad[2] else None
        dx_TH = _backward(grad_TH, saved, grad_sum_TH, ctx.offset)
        return dx_TH, dx_TH if ctx.needs_input_grad[1] else None, dw_H, None, None, None, None
