"""A linear layer over frozen weights, dense, NF4, int8 or FP8, with the LoRA factors of its parts.

    y = x · Wᵀ + b        y[:, rows] += scale · (x · Aᵀ) · Bᵀ   for each part      (https://arxiv.org/abs/2106.09685)

Backward, with g = dy:

    du = scale · g[:, rows] · B        dA = duᵀ · x        dB = scale · g[:, rows]ᵀ · (x · Aᵀ)
    dx = g · W + sum of du · A

No gradient of W is ever formed, and no dequantised W outlives the product it serves: the backward pass dequantises
again. Where all parts read x itself, their factors are held twice: as fp32 masters, which are trained, and stacked in
the compute dtype (``Stacked``), the A's one below the other, the scaled B's along the diagonal of one matrix, so that
each of the products above is one for all parts. With dropout each part goes by itself.

Over FP8 weights, and over NF4 weights of which that is wanted, x · Wᵀ and g · W are computed in FP8 where activations
are bf16 (``fp8.py``); all else is as ever.

In: x [T, K] in the compute dtype; W [N, K] a tensor of any float dtype, or quantised; factors are fp32
masters, cast to x's dtype for the products. Out: y [T, N] in x's dtype; gradients of factors in their own dtype. Kept:
x and u = x · Aᵀ (with dropout the dropped x and u of each part); without factors nothing.

Shapes: T tokens, K inputs, N outputs, n outputs of a part, r rank of a part, R ranks of all parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from whippet.kernels import fp8, int8, triton_jit
from whippet.kernels.fp8 import Added, FP8Tensor, Handover, dequantize_fp8
from whippet.kernels.int8 import Int8Tensor, dequantize_int8
from whippet.kernels.lora_factors import LoraPart, Stacked
from whippet.kernels.nf4 import BLOCK, NESTED_BLOCK, NF4Tensor, dequantize_nf4, slice_rows

Weight = Tensor | NF4Tensor | Int8Tensor | FP8Tensor

HALVED = 2**26
"""Weights from which on a matrix is dequantised by halves."""
WHOLE_BLOCKS = BLOCK * NESTED_BLOCK
"""A cut at a multiple of these parts no block of either size."""


def frozen_linear(
    x_TK: Tensor,
    weight: Weight,
    bias_N: Tensor | None = None,
    parts: Sequence[LoraPart] = (),
    stacked: Stacked | None = None,
    *,
    product: bool = True,
    room: bool = False,
    rows: FP8Tensor | None = None,
    handover: Handover | None = None,
) -> Tensor:
    """Return [T, N] in x's dtype; ``weight`` is [N, K] and gets no gradient.

    ``stacked``: the parts' factors in x's dtype, up to date, by those who keep them; made here if there are none.
    Without ``product`` the returned values are undefined: for a backward pass that recomputes, and needs only what this
    op keeps for itself. ``room``: each row of x is followed by room for ``room_wanted`` numbers, which this op may use:
    u goes there and B behind W, so that y is one product; and the gradients dx and du are one. Over an FP8 weight,
    ``rows``: x in FP8, if somebody has that already; ``handover``: brings the gradient of y in FP8, and if it defers,
    what the parts add to the product is left there, and y lacks it.
    """
    if parts and all(part.x_dropped is None for part in parts):
        kept = stacked if stacked is not None else Stacked(parts, weight.shape[0], x_TK.dtype).renewed(parts)
        layout = tuple((part.rows, part.scale) for part in parts)
        factors = [factor for part in parts for factor in (part.a_rK, part.b_nr)]
        return _StackedLinear.apply(x_TK, weight, bias_N, layout, kept, product, room, rows, handover, *factors)
    return _with_parts(_FrozenLinear.apply(x_TK, weight, bias_N, product, rows, handover), x_TK, parts)


def frozen_linear_reference(
    x_TK: Tensor, weight: Weight, bias_N: Tensor | None = None, parts: Sequence[LoraPart] = ()
) -> Tensor:
    """The definition, differentiated by autograd; over FP8 weights without rounding x and g to FP8."""
    bias_N = None if bias_N is None else bias_N.to(x_TK.dtype)
    return _with_parts(functional.linear(x_TK, dense(weight, x_TK.dtype), bias_N), x_TK, parts)


def _with_parts(y_TN: Tensor, x_TK: Tensor, parts: Sequence[LoraPart]) -> Tensor:
    for part in parts:
        source_TK = x_TK if part.x_dropped is None else part.x_dropped
        u_Tr = source_TK @ part.a_rK.to(x_TK.dtype).T
        added_Tn = part.scale * (u_Tr @ part.b_nr.to(x_TK.dtype).T)
        before, after = part.rows.start, y_TN.shape[1] - part.rows.stop
        y_TN = y_TN + functional.pad(added_Tn, (before, after))
    return y_TN


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight as a tensor of ``dtype``, itself where it is that already."""
    if isinstance(weight, FP8Tensor):
        return dequantize_fp8(weight, dtype)
    if isinstance(weight, Int8Tensor):
        return dequantize_int8(weight, dtype)
    return dequantize_nf4(weight, dtype) if isinstance(weight, NF4Tensor) else weight.to(dtype)


def room_wanted(weight: Weight, ranks: int, dtype: torch.dtype) -> int:
    """Numbers behind each row of x, of ``dtype``, that make this op quicker; 0 where they would not."""
    if not isinstance(weight, NF4Tensor) or not triton_jit.usable(weight.codes):
        return 0
    if fp8.wanted(weight) and dtype == torch.bfloat16:  # W is there in FP8, and B in 16 bit
        return 0
    # fp32 products take so long that a pass more does not show; and the one longer sum is less exact in fp32 itself,
    # while in 16 bit it spares a rounding.
    if dtype == torch.float32:
        return 0
    # Rows begin at multiples of 16 bytes, and it pays where y is wide.
    aligned = ranks % 8 == 0 and weight.shape[1] % 8 == 0
    return ranks if aligned and weight.shape[0] > weight.shape[1] else 0


class _StackedLinear(torch.autograd.Function):
    """All parts read x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TK: Tensor,
        weight: Weight,
        bias_N: Tensor | None,
        layout: tuple[tuple[slice, float], ...],
        stacked: Stacked,
        product: bool,
        room: bool,
        rows: FP8Tensor | None,
        handover: Handover | None,
        *factors: Tensor,
    ) -> Tensor:
        if product and room and isinstance(weight, NF4Tensor):
            y_TN, u_TR = _one_product(x_TK, weight, bias_N, stacked)
        else:
            u_TR = x_TK @ stacked.a_RK.T
            y_TN = product_with(x_TK, weight, bias_N, rows) if product else undefined(x_TK, weight)
            if product and handover is not None and handover.defers:
                handover.leave_added(y_TN, _by_halves(u_TR, stacked, layout))
            elif product:
                y_TN.addmm_(u_TR, stacked.b_NR.T)
        ctx.weight, ctx.layout, ctx.stacked, ctx.room, ctx.handover = weight, layout, stacked, room, handover
        ctx.bias_dtype = None if bias_N is None else bias_N.dtype
        ctx.dtypes = [factor.dtype for factor in factors]
        # Without a trained factor only dx is wanted, and dx needs no x.
        ctx.save_for_backward(*((x_TK, u_TR) if any(ctx.needs_input_grad[9:]) else ()))
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        a_RK, b_NR = ctx.stacked.a_RK, ctx.stacked.b_NR
        dx_TK = None
        if ctx.needs_input_grad[0]:
            # Before x is asked for, which is often made again then: it and the dense weight need not meet.
            rows = None if ctx.handover is None else ctx.handover.take(grad_TN)
            dx_TX = input_gradient(grad_TN, ctx.weight, b_NR if ctx.room else None, rows)
            del rows
            dx_TK, du_TR = dx_TX[:, : a_RK.shape[1]], dx_TX[:, a_RK.shape[1] :]
        if dx_TK is None or not ctx.room:
            du_TR = grad_TN @ b_NR
        grads: list[Tensor | None] = [None] * len(ctx.dtypes)
        saved = ctx.saved_tensors
        if saved:
            x_TK, u_TR = saved
            grads = factor_gradients(grad_TN, du_TR, x_TK, u_TR, ctx.stacked, ctx.layout, ctx.dtypes)
        if dx_TK is not None:
            dx_TK.addmm_(du_TR, a_RK)
        return dx_TK, None, bias_gradient(ctx, grad_TN), None, None, None, None, None, None, *grads


def factor_gradients(
    grad_TN: Tensor,
    du_TR: Tensor,
    x_TK: Tensor,
    u_TR: Tensor,
    stacked: Stacked,
    layout: Sequence[tuple[slice, float]],
    dtypes: Sequence[torch.dtype],
) -> list[Tensor | None]:
    """Gradients of A, B, A, B, … in their dtypes: one product for all A and one for all B."""
    da_RK, db_NR = _product(du_TR.T, x_TK), _product(grad_TN.T, u_TR)
    grads: list[Tensor | None] = []
    for number, ((rows, scale), columns) in enumerate(zip(layout, stacked.columns, strict=True)):
        grads.append(da_RK[columns].to(dtypes[2 * number]))
        db_nr = db_NR[rows, columns]
        grads.append((db_nr if scale == 1.0 else db_nr * scale).to(dtypes[2 * number + 1]))
    return grads


def _by_halves(u_TR: Tensor, stacked: Stacked, layout: Sequence[tuple[slice, float]]) -> list[Added]:
    """u and B of each half of the outputs, without ranks that add nothing to it."""
    num_outputs = len(stacked.b_NR)
    halves = []
    for half in (slice(0, num_outputs // 2), slice(num_outputs // 2, num_outputs)):
        parts = zip(layout, stacked.columns, strict=True)
        columns = [place for (rows, _), place in parts if rows.start < half.stop and half.start < rows.stop]
        ranks = slice(columns[0].start, columns[-1].stop) if columns else slice(0, 0)
        halves.append((u_TR[:, ranks], stacked.b_NR[half, ranks]))
    return halves


def _one_product(x_TK: Tensor, weight: NF4Tensor, bias_N: Tensor | None, stacked: Stacked) -> tuple[Tensor, Tensor]:
    """y = [x, u] · [W, B]ᵀ, and u."""
    width = x_TK.shape[1]
    x_TX = triton_jit.wider(x_TK, len(stacked.a_RK))
    torch.mm(x_TK, stacked.a_RK.T, out=x_TX[:, width:])
    bias = None if bias_N is None else bias_N.to(x_TK.dtype)
    y_TN = functional.linear(x_TX, _dense_beside(weight, stacked.b_NR), bias)
    return y_TN, x_TX[:, width:].clone()  # what is kept does not hold x


def _dense_beside(weight: NF4Tensor, b_NR: Tensor) -> Tensor:
    """[W, B], in B's dtype."""
    num_rows, width = weight.shape
    both_NX = b_NR.new_empty(num_rows, width + b_NR.shape[1])
    dequantize_nf4(weight, b_NR.dtype, both_NX[:, :width])
    both_NX[:, width:] = b_NR
    return both_NX


def input_gradient(
    grad_TN: Tensor, weight: Weight, b_NR: Tensor | None = None, rows: FP8Tensor | None = None
) -> Tensor:
    """g · W, or g · [W, B]. A large NF4 weight is dequantised by halves: whole it would be the largest thing of a
    layer's backward pass."""
    if fp8.wanted(weight) and fp8.applies(grad_TN):
        return fp8.input_gradient(grad_TN, weight, rows)

    def made(rows: slice) -> Tensor:
        part = weight
        if isinstance(weight, NF4Tensor) and rows != every:
            part = slice_rows(weight, rows.start, rows.stop)
        if b_NR is None or not isinstance(part, NF4Tensor):
            return dense(part, grad_TN.dtype)
        return _dense_beside(part, b_NR[rows])

    num_rows, border = weight.shape[0], weight.shape[0] // 2
    every = slice(0, num_rows)
    if not isinstance(weight, NF4Tensor) or weight.numel < HALVED or border * weight.shape[1] % WHOLE_BLOCKS:
        return grad_TN @ made(every)
    dx_TX = grad_TN[:, :border] @ made(slice(0, border))
    return dx_TX.addmm_(grad_TN[:, border:], made(slice(border, num_rows)))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left · right`` in fp32: on a GPU the product's own sums, before any rounding to 16 bit."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


class _FrozenLinear(torch.autograd.Function):
    """Without parts: nothing is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TK: Tensor,
        weight: Weight,
        bias_N: Tensor | None,
        product: bool,
        rows: FP8Tensor | None,
        handover: Handover | None,
    ) -> Tensor:
        ctx.weight, ctx.bias_dtype, ctx.handover = weight, None if bias_N is None else bias_N.dtype, handover
        return product_with(x_TK, weight, bias_N, rows) if product else undefined(x_TK, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        dx_TK = None
        if ctx.needs_input_grad[0]:
            rows = None if ctx.handover is None else ctx.handover.take(grad_TN)
            dx_TK = input_gradient(grad_TN, ctx.weight, rows=rows)
        return dx_TK, None, bias_gradient(ctx, grad_TN), None, None, None


def product_with(x_TK: Tensor, weight: Weight, bias_N: Tensor | None, rows: FP8Tensor | None = None) -> Tensor:
    """x · Wᵀ + b."""
    if fp8.wanted(weight) and fp8.applies(x_TK):
        y_TN = fp8.product(x_TK, weight, rows)
        return y_TN if bias_N is None else y_TN.add_(bias_N.to(y_TN.dtype))
    if isinstance(weight, Int8Tensor) and int8.applies(x_TK):
        y_TN = int8.product(x_TK, weight)
        return y_TN if bias_N is None else y_TN.add_(bias_N.to(y_TN.dtype))
    bias = None if bias_N is None else bias_N.to(x_TK.dtype)
    return functional.linear(x_TK, dense(weight, x_TK.dtype), bias)


def undefined(x_TK: Tensor, weight: Weight) -> Tensor:
    """[T, N] without memory."""
    return x_TK.new_zeros(()).expand(len(x_TK), weight.shape[0])


def bias_gradient(ctx: Any, grad_TN: Tensor) -> Tensor | None:
    """The sum of g over tokens in fp32, if it is asked for."""
    wanted = ctx.bias_dtype is not None and ctx.needs_input_grad[2]
    return grad_TN.sum(0, dtype=torch.float32).to(ctx.bias_dtype) if wanted else None
