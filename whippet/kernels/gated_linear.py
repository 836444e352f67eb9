"""The end of a gated MLP as one op: activation and last projection over frozen weights, with its LoRA factors.

    y = h · Wᵀ + u · Bᵀ        h = silu(g) · v        u = h · Aᵀ        (g, v: the halves of gate_up)

Backward, with d = dy · W + du · A the gradient of h, du = dy · B:

    dA = duᵀ · h        dB = dyᵀ · u        dg, dv = the gated activation's (``gated_mlp.py``)

As two ops, h would be made again for dA in one pass and the activation's gradient in another; here one pass over
gate_up makes both, and writes them where d and gate_up lie: a layer's backward pass needs no memory for either. So the
backward pass runs once: a second one raises, because what was saved has changed.

In: gate_up [T, 2F]; W [N, F], tensor or NF4Tensor; ``Stacked`` factors. Out: y [T, N]. Kept: gate_up and u.

Shapes: T tokens, F intermediate size, N outputs, R ranks of all parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from whippet.kernels import frozen_linear, gated_mlp, triton_jit
from whippet.kernels.frozen_linear import LoraPart, Stacked
from whippet.kernels.nf4 import NF4Tensor
from whippet.kernels.triton_jit import tl


def gated_linear(
    gate_up_TF2: Tensor,
    weight: Tensor | NF4Tensor,
    bias_N: Tensor | None,
    parts: Sequence[LoraPart],
    stacked: Stacked,
    *,
    product: bool = True,
) -> Tensor:
    """Return [T, N] in gate_up's dtype; ``weight`` gets no gradient. Every part reads h itself (no dropout).

    Without ``product`` the returned values are undefined, as in ``frozen_linear``.
    """
    layout = tuple((part.rows, part.scale) for part in parts)
    factors = [factor for part in parts for factor in (part.a_rK, part.b_nr)]
    return _GatedLinear.apply(gate_up_TF2, weight, bias_N, layout, stacked, product, *factors)


def gated_linear_reference(
    gate_up_TF2: Tensor, weight: Tensor | NF4Tensor, bias_N: Tensor | None, parts: Sequence[LoraPart]
) -> Tensor:
    """The definition, differentiated by autograd."""
    hidden_TF = gated_mlp.forward_torch(gate_up_TF2)
    return frozen_linear.frozen_linear_reference(hidden_TF, weight, bias_N, parts)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate_up_TF2: Tensor,
        weight: Tensor | NF4Tensor,
        bias_N: Tensor | None,
        layout: tuple[tuple[slice, float], ...],
        stacked: Stacked,
        product: bool,
        *factors: Tensor,
    ) -> Tensor:
        hidden_TF = _activated(gate_up_TF2)
        u_TR = hidden_TF @ stacked.a_RK.T
        if product:
            y_TN = frozen_linear.product_with(hidden_TF, weight, bias_N)
            y_TN.addmm_(u_TR, stacked.b_NR.T)
        else:
            y_TN = frozen_linear.undefined(hidden_TF, weight)
        ctx.weight, ctx.layout, ctx.stacked = weight, layout, stacked
        ctx.bias_dtype = None if bias_N is None else bias_N.dtype
        ctx.dtypes = [factor.dtype for factor in factors]
        ctx.save_for_backward(gate_up_TF2, u_TR)
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        gate_up_TF2, u_TR = ctx.saved_tensors
        stacked: Stacked = ctx.stacked
        du_TR = grad_TN @ stacked.b_NR
        dhidden_TF = frozen_linear.input_gradient(grad_TN, ctx.weight)
        dhidden_TF.addmm_(du_TR, stacked.a_RK)
        _backward_in_place(dhidden_TF, gate_up_TF2)
        increment_version(gate_up_TF2)
        hidden_TF, dgate_up_TF2 = dhidden_TF, gate_up_TF2
        grads: list[Tensor | None] = [None] * len(ctx.dtypes)
        if any(ctx.needs_input_grad[6:]):
            grads = frozen_linear.factor_gradients(grad_TN, du_TR, hidden_TF, u_TR, stacked, ctx.layout, ctx.dtypes)
        return dgate_up_TF2, None, frozen_linear.bias_gradient(ctx, grad_TN), None, None, None, *grads


def _activated(gate_up_TF2: Tensor) -> Tensor:
    run = gated_mlp.forward_triton if triton_jit.usable(gate_up_TF2) else gated_mlp.forward_torch
    return run(gate_up_TF2)


def _backward_in_place(dhidden_TF: Tensor, gate_up_TF2: Tensor) -> None:
    """``gate_up_TF2`` becomes its gradient, and ``dhidden_TF`` the activation."""
    assert dhidden_TF.is_contiguous() and gate_up_TF2.stride(1) == 1
    if triton_jit.usable(gate_up_TF2):
        backward_triton(dhidden_TF, gate_up_TF2)
        return
    gradient_TF2 = gated_mlp.backward_torch(dhidden_TF, gate_up_TF2)
    dhidden_TF.copy_(gated_mlp.forward_torch(gate_up_TF2))
    gate_up_TF2.copy_(gradient_TF2)


@triton_jit.jit
def _backward_kernel(hidden_ptr, x_ptr, x_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    hidden_ptr += row * width + columns
    gate_ptr = x_ptr + row * x_stride + columns
    grad = tl.load(hidden_ptr, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    active = gate * sigmoid
    dgate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    kind = x_ptr.dtype.element_ty
    tl.store(hidden_ptr, (active * up).to(kind), mask=inside)
    tl.store(gate_ptr, dgate.to(kind), mask=inside)
    tl.store(gate_ptr + width, (grad * active).to(kind), mask=inside)


def backward_triton(dhidden_TF: Tensor, gate_up_TF2: Tensor) -> None:
    """As ``_backward_in_place``, in one pass: 4 numbers read and 3 written a column."""
    num_rows, width = dhidden_TF.shape
    if num_rows:
        grid = (num_rows, -(-width // gated_mlp.BLOCK))
        _backward_kernel[grid](dhidden_TF, gate_up_TF2, gate_up_TF2.stride(0), width, BLOCK=gated_mlp.BLOCK)
