"""A linear layer over frozen weights, dense or NF4, with the LoRA factors of its parts.

    y = x · Wᵀ + b        y[:, rows] += scale · (x · Aᵀ) · Bᵀ   for each part      (https://arxiv.org/abs/2106.09685)

Backward, with g = dy:

    du = scale · g[:, rows] · B        dA = duᵀ · x        dB = scale · g[:, rows]ᵀ · (x · Aᵀ)
    dx = g · W + sum of du · A

No gradient of W is ever formed, and no dequantised W outlives the product it serves: the backward pass dequantises
again. The down products of all parts that share an input are one product with the A's laid one below the other.

In: x [T, K] in the compute dtype; W [N, K] a tensor of any float dtype or NF4Tensor; factors are fp32 masters, cast to
x's dtype for the products. Out: y [T, N] in x's dtype; gradients of factors in their own dtype. Kept: x (and the
dropped x where there is dropout) and u = x · Aᵀ.

Shapes: T tokens, K inputs, N outputs, n outputs of a part, r rank of a part, R ranks of all parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from whippet.kernels.nf4 import NF4Tensor, dequantize_nf4


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


def frozen_linear(
    x_TK: Tensor, weight: Tensor | NF4Tensor, bias_N: Tensor | None = None, parts: Sequence[LoraPart] = ()
) -> Tensor:
    """Return [T, N] in x's dtype; ``weight`` is [N, K] and gets no gradient."""
    inputs = [part.x_dropped for part in parts if part.x_dropped is not None]
    assert len(inputs) in (0, len(parts)), "either all parts have a dropped input or none"
    layout = tuple((part.rows, part.scale) for part in parts)
    factors = [factor for part in parts for factor in (part.a_rK, part.b_nr)]
    return _FrozenLinear.apply(x_TK, weight, bias_N, layout, *factors, *inputs)


def frozen_linear_reference(
    x_TK: Tensor, weight: Tensor | NF4Tensor, bias_N: Tensor | None = None, parts: Sequence[LoraPart] = ()
) -> Tensor:
    """The definition, differentiated by autograd."""
    bias_N = None if bias_N is None else bias_N.to(x_TK.dtype)
    y_TN = functional.linear(x_TK, dense(weight, x_TK.dtype), bias_N)
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


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TK: Tensor,
        weight: Tensor | NF4Tensor,
        bias_N: Tensor | None,
        layout: tuple[tuple[slice, float], ...],
        *tensors: Tensor,
    ) -> Tensor:
        bias = None if bias_N is None else bias_N.to(x_TK.dtype)
        y_TN = functional.linear(x_TK, dense(weight, x_TK.dtype), bias)
        count = len(layout)
        factors, inputs = tensors[: 2 * count], tensors[2 * count :]
        us = _down(x_TK, factors[::2], inputs)
        for (rows, scale), b_nr, u_Tr in zip(layout, factors[1::2], us, strict=True):
            y_TN[:, rows].addmm_(u_Tr, b_nr.to(x_TK.dtype).T, alpha=scale)
        ctx.weight, ctx.layout = weight, layout
        ctx.bias_dtype = None if bias_N is None else bias_N.dtype
        # Without a trained factor only dx is wanted, and dx needs no x.
        kept = (x_TK, *inputs, *us) if any(ctx.needs_input_grad[4:]) else ()
        ctx.num_kept = len(kept)
        ctx.save_for_backward(*factors, *kept)
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.layout)
        factors, kept = ctx.saved_tensors[: 2 * count], ctx.saved_tensors[2 * count :]
        dx_TK = grad_TN @ dense(ctx.weight, grad_TN.dtype) if ctx.needs_input_grad[0] else None
        dbias_N = None
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            dbias_N = grad_TN.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        grads: list[Tensor | None] = []
        if kept:
            grads = _part_gradients(grad_TN, dx_TK, ctx.layout, factors, kept)
        else:
            grads = [None] * (len(ctx.needs_input_grad) - 4)
        return dx_TK, None, dbias_N, None, *grads


def _down(x_TK: Tensor, factors_a: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """u = x · Aᵀ of each part; one product where all parts share their input."""
    if not factors_a:
        return []
    source_TK = _shared(x_TK, inputs)
    if source_TK is None:
        return [x @ a_rK.to(x.dtype).T for x, a_rK in zip(inputs, factors_a, strict=True)]
    u_TR = source_TK @ _stacked(factors_a, x_TK.dtype).T
    return list(u_TR.split([len(a_rK) for a_rK in factors_a], dim=1))


def _part_gradients(
    grad_TN: Tensor,
    dx_TK: Tensor | None,
    layout: Sequence[tuple[slice, float]],
    factors: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of A, B, A, B, … and of dropped inputs; adds the parts' share to ``dx_TK`` where they read x itself."""
    count, dtype = len(layout), grad_TN.dtype
    x_TK, inputs, us = kept[0], kept[1:-count], kept[-count:]
    factors_a, factors_b = factors[::2], factors[1::2]
    dus, dbs = [], []
    for (rows, scale), b_nr, u_Tr in zip(layout, factors_b, us, strict=True):
        scaled_Tn = grad_TN[:, rows]
        dbs.append((scaled_Tn.T @ u_Tr).to(b_nr.dtype) * scale)
        dus.append((scaled_Tn @ b_nr.to(dtype)) * scale)
    source_TK = _shared(x_TK, inputs)
    if source_TK is None:
        das = [du_Tr.T @ x for du_Tr, x in zip(dus, inputs, strict=True)]
    else:
        du_TR = torch.cat(dus, dim=1) if count > 1 else dus[0]
        das = list((du_TR.T @ source_TK).split([len(a) for a in factors_a]))
    grads: list[Tensor | None] = []
    for da_rK, db_nr, a_rK in zip(das, dbs, factors_a, strict=True):
        grads += [da_rK.to(a_rK.dtype), db_nr]
    if inputs:
        return grads + [du_Tr @ a_rK.to(dtype) for du_Tr, a_rK in zip(dus, factors_a, strict=True)]
    if dx_TK is not None:
        dx_TK.addmm_(du_TR, _stacked(factors_a, dtype))
    return grads


def _shared(x_TK: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
    """The one tensor that all parts read, or None if they read several."""
    if not inputs:
        return x_TK
    return inputs[0] if all(x is inputs[0] for x in inputs) else None


def _stacked(factors_a: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([a_rK.to(dtype) for a_rK in factors_a]) if len(factors_a) > 1 else factors_a[0].to(dtype)
