"""A linear layer over frozen weights, dense or NF4, with the LoRA factors of its parts.

    y = x · Wᵀ + b        y[:, rows] += scale · (x · Aᵀ) · Bᵀ   for each part      (https://arxiv.org/abs/2106.09685)

Backward, with g = dy:

    du = scale · g[:, rows] · B        dA = duᵀ · x        dB = scale · g[:, rows]ᵀ · (x · Aᵀ)
    dx = g · W + sum of du · A

No gradient of W is ever formed, and no dequantised W outlives the product it serves: the backward pass dequantises
again. Where all parts read x itself, their factors are held twice: as fp32 masters, which are trained, and stacked in
the compute dtype (``Stacked``), the A's one below the other, the scaled B's along the diagonal of one matrix, so that
each of the products above is one for all parts. With dropout each part goes by itself.

In: x [T, K] in the compute dtype; W [N, K] a tensor of any float dtype or NF4Tensor; factors are fp32 masters, cast to
x's dtype for the products. Out: y [T, N] in x's dtype; gradients of factors in their own dtype. Kept: x and u = x · Aᵀ
(with dropout the dropped x and u of each part); without factors nothing.

Shapes: T tokens, K inputs, N outputs, n outputs of a part, r rank of a part, R ranks of all parts together.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from whippet.kernels.nf4 import BLOCK, NESTED_BLOCK, NF4Tensor, dequantize_nf4, slice_rows

HALVED = 2**26
"""Weights from which on a matrix is dequantised by halves."""
WHOLE_BLOCKS = BLOCK * NESTED_BLOCK
"""A cut at a multiple of these parts no block of either size."""


@dataclass(frozen=True)
class LoraPart:
    """The low-rank factors of one block of rows of a fused weight."""

    a_rK: Tensor
    b_nr: Tensor
    rows: slice
    """Rows of the fused weight, that is columns of its output, that the part adds to."""
    scale: float
    x_dropped: Tensor | None = None
    """x after dropout, [T, K]; None where there is none. Parts may share one."""


class Stacked:
    """The factors of all parts in one dtype: ``a_RK`` and ``b_NR``, in which everything off the diagonal is zero.

    They are renewed when a master has changed, which its version counter tells, so once an optimiser step.
    """

    def __init__(self, parts: Sequence[LoraPart], num_outputs: int, dtype: torch.dtype) -> None:
        ranks = [len(part.a_rK) for part in parts]
        first = parts[0].a_rK
        self.a_RK = first.new_empty(sum(ranks), first.shape[1], dtype=dtype)
        self.b_NR = first.new_zeros(num_outputs, sum(ranks), dtype=dtype)
        stops = [*accumulate(ranks)]
        self.columns = [slice(stop - rank, stop) for rank, stop in zip(ranks, stops, strict=True)]
        self._versions: tuple[int, ...] = ()
        self._masters = [factor for part in parts for factor in (part.a_rK, part.b_nr)]

    def fits(self, parts: Sequence[LoraPart], dtype: torch.dtype) -> bool:
        """Whether this was made for these masters and this dtype."""
        masters = [factor for part in parts for factor in (part.a_rK, part.b_nr)]
        same = len(masters) == len(self._masters) and all(map(operator.is_, masters, self._masters))
        return same and self.a_RK.dtype == dtype

    @torch.no_grad()
    def renewed(self, parts: Sequence[LoraPart]) -> Stacked:
        """This, as the masters are now."""
        versions = tuple(factor._version for factor in self._masters)
        if versions != self._versions:
            for columns, part in zip(self.columns, parts, strict=True):
                self.a_RK[columns].copy_(part.a_rK)
                torch.mul(part.b_nr, part.scale, out=self.b_NR[part.rows, columns])
            self._versions = versions
        return self


def frozen_linear(
    x_TK: Tensor,
    weight: Tensor | NF4Tensor,
    bias_N: Tensor | None = None,
    parts: Sequence[LoraPart] = (),
    stacked: Stacked | None = None,
    *,
    product: bool = True,
) -> Tensor:
    """Return [T, N] in x's dtype; ``weight`` is [N, K] and gets no gradient.

    ``stacked``: the parts' factors in x's dtype, up to date, by those who keep them; made here if there are none.
    Without ``product`` the returned values are undefined: for a backward pass that recomputes, and needs only what this
    op keeps for itself.
    """
    if parts and all(part.x_dropped is None for part in parts):
        kept = stacked if stacked is not None else Stacked(parts, weight.shape[0], x_TK.dtype).renewed(parts)
        layout = tuple((part.rows, part.scale) for part in parts)
        factors = [factor for part in parts for factor in (part.a_rK, part.b_nr)]
        return _StackedLinear.apply(x_TK, weight, bias_N, layout, kept, product, *factors)
    return _with_parts(_FrozenLinear.apply(x_TK, weight, bias_N, product), x_TK, parts)


def frozen_linear_reference(
    x_TK: Tensor, weight: Tensor | NF4Tensor, bias_N: Tensor | None = None, parts: Sequence[LoraPart] = ()
) -> Tensor:
    """The definition, differentiated by autograd."""
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


def dense(weight: Tensor | NF4Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as a tensor of ``dtype``, itself where it is that already."""
    return dequantize_nf4(weight, dtype) if isinstance(weight, NF4Tensor) else weight.to(dtype)


class _StackedLinear(torch.autograd.Function):
    """All parts read x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TK: Tensor,
        weight: Tensor | NF4Tensor,
        bias_N: Tensor | None,
        layout: tuple[tuple[slice, float], ...],
        stacked: Stacked,
        product: bool,
        *factors: Tensor,
    ) -> Tensor:
        u_TR = x_TK @ stacked.a_RK.T
        y_TN = _product_with(x_TK, weight, bias_N) if product else _undefined(x_TK, weight)
        if product:
            y_TN.addmm_(u_TR, stacked.b_NR.T)
        ctx.weight, ctx.layout, ctx.stacked = weight, layout, stacked
        ctx.bias_dtype = None if bias_N is None else bias_N.dtype
        ctx.dtypes = [factor.dtype for factor in factors]
        # Without a trained factor only dx is wanted, and dx needs no x.
        ctx.save_for_backward(*((x_TK, u_TR) if any(ctx.needs_input_grad[6:]) else ()))
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        a_RK, b_NR, columns = ctx.stacked.a_RK, ctx.stacked.b_NR, ctx.stacked.columns
        du_TR = grad_TN @ b_NR
        grads: list[Tensor | None] = [None] * len(ctx.dtypes)
        # Asked for once, since x is often made again then; and before the weight is, lest both are there at once.
        saved = ctx.saved_tensors
        if saved:
            x_TK, u_TR = saved
            da_RK, db_NR = _product(du_TR.T, x_TK), _product(grad_TN.T, u_TR)
            del x_TK, u_TR, saved
            for number, (rows, scale) in enumerate(ctx.layout):
                grads[2 * number] = da_RK[columns[number]].to(ctx.dtypes[2 * number])
                grads[2 * number + 1] = (db_NR[rows, columns[number]] * scale).to(ctx.dtypes[2 * number + 1])
        dx_TK = None
        if ctx.needs_input_grad[0]:
            dx_TK = _input_gradient(grad_TN, ctx.weight)
            dx_TK.addmm_(du_TR, a_RK)
        return dx_TK, None, _bias_gradient(ctx, grad_TN), None, None, None, *grads


def _input_gradient(grad_TN: Tensor, weight: Tensor | NF4Tensor) -> Tensor:
    """g · W. A wide NF4 weight is dequantised by halves: whole it would be the largest thing of a layer's backward."""
    border = weight.shape[0] // 2
    if not isinstance(weight, NF4Tensor) or weight.numel < HALVED or border * weight.shape[1] % WHOLE_BLOCKS:
        return grad_TN @ dense(weight, grad_TN.dtype)
    dx_TK = grad_TN[:, :border] @ dense(slice_rows(weight, 0, border), grad_TN.dtype)
    return dx_TK.addmm_(grad_TN[:, border:], dense(slice_rows(weight, border, weight.shape[0]), grad_TN.dtype))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left · right`` in fp32: on a GPU the product's own sums, before any rounding to 16 bit."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


class _FrozenLinear(torch.autograd.Function):
    """Without parts: nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight: Tensor | NF4Tensor, bias_N: Tensor | None, product: bool) -> Tensor:
        ctx.weight, ctx.bias_dtype = weight, None if bias_N is None else bias_N.dtype
        return _product_with(x_TK, weight, bias_N) if product else _undefined(x_TK, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        dx_TK = _input_gradient(grad_TN, ctx.weight) if ctx.needs_input_grad[0] else None
        return dx_TK, None, _bias_gradient(ctx, grad_TN), None


def _product_with(x_TK: Tensor, weight: Tensor | NF4Tensor, bias_N: Tensor | None) -> Tensor:
    bias = None if bias_N is None else bias_N.to(x_TK.dtype)
    return functional.linear(x_TK, dense(weight, x_TK.dtype), bias)


def _undefined(x_TK: Tensor, weight: Tensor | NF4Tensor) -> Tensor:
    """[T, N] without memory."""
    return x_TK.new_zeros(()).expand(len(x_TK), weight.shape[0])


def _bias_gradient(ctx: Any, grad_TN: Tensor) -> Tensor | None:
    wanted = ctx.bias_dtype is not None and ctx.needs_input_grad[2]
    return grad_TN.sum(0, dtype=torch.float32).to(ctx.bias_dtype) if wanted else None
