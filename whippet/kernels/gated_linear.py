"""The end of a gated MLP as one op: activation and last projection over frozen weights, with its LoRA factors.

    y = h · Wᵀ + u · Bᵀ        h = act(g) · v        u = h · Aᵀ        (g, v: the halves of gate_up)

Backward, with d = dy · W + du · A the gradient of h, du = dy · B:

    dA = duᵀ · h        dB = dyᵀ · u        dg, dv = the gated activation's (``gated_mlp.py``)

As two ops, h would be made again for dA in one pass and the activation's gradient in another; here one pass over
gate_up adds du · A to dy · W and makes both, and writes them where d and gate_up lie: a layer's backward pass needs no
memory for either. So the backward pass runs once: a second one raises, because what was saved has changed.

Over FP8 weights the activation leaves in FP8 too, and so does the gradient of gate_up, for the product that made it
(``fp8.Handover``): the pass that makes the numbers finds the largest of each row, a second one rounds them. And what
the adapters of gate_up add to that product comes here by itself, and is added in place.

In: gate_up [T, 2F]; W [N, F], tensor, NF4Tensor or FP8Tensor; ``Stacked`` factors. Out: y [T, N]. Kept: gate_up and u.

Shapes: T tokens, F intermediate size, N outputs, R ranks of all parts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from whippet.kernels import fp8, frozen_linear, gated_mlp, tiles, triton_jit
from whippet.kernels.fp8 import FP8Tensor, Handover
from whippet.kernels.frozen_linear import Weight
from whippet.kernels.gated_mlp import Activation, gate_of
from whippet.kernels.lora_factors import LoraPart, Stacked
from whippet.kernels.tiles import low_rank, raise_largest, tile_of
from whippet.kernels.triton_jit import tl

ROWS, COLUMNS, WARPS = 16, 64, 4
"""Of one program of the backward pass: 16 numbers of each of its three tensors a thread, 128 bytes of a row, which are
a line of memory. Small programs wait for each other's barriers least."""


def gated_linear(
    gate_up_TF2: Tensor,
    weight: Weight,
    bias_N: Tensor | None,
    parts: Sequence[LoraPart],
    stacked: Stacked,
    *,
    product: bool = True,
    handover: Handover | None = None,
    activation: Activation = "silu",
) -> Tensor:
    """Return [T, N] in gate_up's dtype; ``weight`` gets no gradient. Every part reads h itself (no dropout).

    Without ``product`` the returned values are undefined, as in ``frozen_linear``. ``handover``: of the product that
    gave ``gate_up_TF2``; if that has left its adapters' part there, ``gate_up_TF2`` is completed in place.
    """
    layout = tuple((part.rows, part.scale) for part in parts)
    factors = [factor for part in parts for factor in (part.a_rK, part.b_nr)]
    return _GatedLinear.apply(gate_up_TF2, weight, bias_N, layout, stacked, product, handover, activation, *factors)


def gated_linear_reference(
    gate_up_TF2: Tensor,
    weight: Weight,
    bias_N: Tensor | None,
    parts: Sequence[LoraPart],
    activation: Activation = "silu",
) -> Tensor:
    """The definition, differentiated by autograd."""
    hidden_TF = gated_mlp.forward_torch(gate_up_TF2, activation)
    return frozen_linear.frozen_linear_reference(hidden_TF, weight, bias_N, parts)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate_up_TF2: Tensor,
        weight: Weight,
        bias_N: Tensor | None,
        layout: tuple[tuple[slice, float], ...],
        stacked: Stacked,
        product: bool,
        handover: Handover | None,
        activation: Activation,
        *factors: Tensor,
    ) -> Tensor:
        added = None if handover is None else handover.take_added(gate_up_TF2)
        if added is not None:
            in_fp8 = product and fp8.wanted(weight) and fp8.applies(gate_up_TF2)
            hidden_TF, rows = gated_mlp.completed(gate_up_TF2, added, in_fp8=in_fp8, activation=activation)
        else:
            hidden_TF, rows = _activated(gate_up_TF2, activation), None
        u_TR = hidden_TF @ stacked.a_RK.T
        if product:
            y_TN = frozen_linear.product_with(hidden_TF, weight, bias_N, rows)
            y_TN.addmm_(u_TR, stacked.b_NR.T)
        else:
            y_TN = frozen_linear.undefined(hidden_TF, weight)
        ctx.weight, ctx.layout, ctx.stacked, ctx.handover = weight, layout, stacked, handover
        ctx.activation = activation
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
        scale_F2 = None if ctx.handover is None else ctx.handover.scales_N
        rows = _backward_in_place(dhidden_TF, gate_up_TF2, du_TR, stacked.a_RK, scale_F2, ctx.activation)
        increment_version(gate_up_TF2)
        hidden_TF, dgate_up_TF2 = dhidden_TF, gate_up_TF2
        if rows is not None:
            ctx.handover.leave(dgate_up_TF2, rows)
        grads: list[Tensor | None] = [None] * len(ctx.dtypes)
        if any(ctx.needs_input_grad[8:]):
            grads = frozen_linear.factor_gradients(grad_TN, du_TR, hidden_TF, u_TR, stacked, ctx.layout, ctx.dtypes)
        return dgate_up_TF2, None, frozen_linear.bias_gradient(ctx, grad_TN), None, None, None, None, None, *grads


def _activated(gate_up_TF2: Tensor, activation: Activation) -> Tensor:
    run = gated_mlp.forward_triton if triton_jit.usable(gate_up_TF2) else gated_mlp.forward_torch
    return run(gate_up_TF2, activation)


def _backward_in_place(
    dhidden_TF: Tensor,
    gate_up_TF2: Tensor,
    du_TR: Tensor,
    a_RF: Tensor,
    scale_F2: Tensor | None,
    activation: Activation,
) -> FP8Tensor | None:
    """``gate_up_TF2`` becomes its gradient, and ``dhidden_TF``, which is dy · W, the activation. The gradient times
    ``scale_F2`` in FP8, if that is there and kernels can make it."""
    assert dhidden_TF.is_contiguous() and gate_up_TF2.stride(1) == 1
    if scale_F2 is not None and fp8.rows_by_kernels(gate_up_TF2):
        return backward_rows(dhidden_TF, gate_up_TF2, scale_F2, du_TR, a_RF, activation=activation)
    if triton_jit.usable(gate_up_TF2):
        backward_triton(dhidden_TF, gate_up_TF2, du_TR, a_RF, activation=activation)
        return None
    dhidden_TF.addmm_(du_TR, a_RF)
    gradient_TF2 = gated_mlp.backward_torch(dhidden_TF, gate_up_TF2, activation)
    dhidden_TF.copy_(gated_mlp.forward_torch(gate_up_TF2, activation))
    gate_up_TF2.copy_(gradient_TF2)
    return None


@triton_jit.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,
    x_ptr,
    du_ptr,
    a_ptr,
    scale_ptr,
    largest_ptr,
    num_rows,
    width,
    x_stride,
    du_stride,
    a_stride,
    RANK: tl.constexpr,
    GELU: tl.constexpr,
    FIND_LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    rows, columns = tile_of(tl.program_id(0), width, ROWS, COLUMNS)
    inside_rows, inside_columns = rows < num_rows, columns < width
    inside = inside_rows[:, None] & inside_columns[None, :]
    wide_rows = rows.to(tl.int64)[:, None]
    hidden_ptr += wide_rows * width + columns[None, :]
    gate_ptr = x_ptr + wide_rows * x_stride + columns[None, :]
    up_ptr = gate_ptr + width
    kind = x_ptr.dtype.element_ty
    grad = tl.load(hidden_ptr, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        if kind != tl.float32:
            # Nothing is added. But the compiler keeps the sums of a product where tensor cores leave them, and so all
            # that follows; or else it would compute with gate twice, there and where it was read: a third more
            # registers, and three times the traffic between threads.
            gate = tl.dot(tl.zeros([ROWS, 16], kind), tl.zeros([16, COLUMNS], kind), gate)
        # The sum is not rounded before it is used, as it would be by a pass of its own.
        du_ptr += wide_rows * du_stride
        a_ptr += columns[None, :]
        grad += low_rank(du_ptr, 1, inside_rows, a_ptr, a_stride, inside_columns, RANK, ROWS, COLUMNS, RANKS)
    sigmoid, rest, steep = gate_of(gate, GELU)
    active = gate * sigmoid
    dgate = (grad * up * sigmoid * (1 + steep * rest)).to(kind)
    dup = (grad * active).to(kind)
    tl.store(hidden_ptr, (active * up).to(kind), mask=inside)
    tl.store(gate_ptr, dgate, mask=inside)
    tl.store(up_ptr, dup, mask=inside)
    if FIND_LARGEST:
        # Of what the adapter reads, which is what will be rounded to FP8.
        scale_ptr += columns
        of_gate = dgate.to(tl.float32) * tl.load(scale_ptr, mask=inside_columns, other=0.0)[None, :]
        of_up = dup.to(tl.float32) * tl.load(scale_ptr + width, mask=inside_columns, other=0.0)[None, :]
        raise_largest(largest_ptr + rows, tl.maximum(tl.abs(of_gate), tl.abs(of_up)), inside_rows)


def backward_triton(
    dhidden_TF: Tensor,
    gate_up_TF2: Tensor,
    du_TR: Tensor | None = None,
    a_RF: Tensor | None = None,
    *,
    activation: Activation = "silu",
) -> None:
    """As ``_backward_in_place``, in one pass: 3 numbers read and 3 written a column. Without ``du_TR`` and ``a_RF``
    nothing is added to ``dhidden_TF``."""
    _launch(dhidden_TF, gate_up_TF2, du_TR, a_RF, None, None, activation)


def backward_rows(
    dhidden_TF: Tensor,
    gate_up_TF2: Tensor,
    scale_F2: Tensor,
    du_TR: Tensor | None = None,
    a_RF: Tensor | None = None,
    *,
    activation: Activation = "silu",
) -> FP8Tensor:
    """``backward_triton``, and what ``fp8.quantize_rows(gate_up_TF2, scale_F2)`` gives then, by a pass that need not
    look for the largest numbers."""
    largest_T = fp8.no_largest(gate_up_TF2)
    _launch(dhidden_TF, gate_up_TF2, du_TR, a_RF, scale_F2, largest_T, activation)
    return fp8.rows_of_largest(gate_up_TF2, largest_T, scale_F2)


def _launch(
    dhidden_TF: Tensor,
    gate_up_TF2: Tensor,
    du_TR: Tensor | None,
    a_RF: Tensor | None,
    scale_F2: Tensor | None,
    largest_T: Tensor | None,
    activation: Activation,
) -> None:
    num_rows, width = dhidden_TF.shape
    if du_TR is not None and a_RF is not None and dhidden_TF.dtype == torch.float32:
        # No training computes in fp32 on a GPU, and torch's own product is the more exact one.
        dhidden_TF.addmm_(du_TR, a_RF)
        du_TR = a_RF = None
    rank = 0 if du_TR is None else du_TR.shape[1]
    if du_TR is None or a_RF is None or not rank:
        du_TR = a_RF = dhidden_TF  # not read
    assert du_TR.stride(1) == a_RF.stride(1) == 1 and du_TR.dtype == a_RF.dtype, (du_TR.stride(), a_RF.stride())
    if dhidden_TF.numel():
        _backward_kernel[(-(-num_rows // ROWS) * -(-width // COLUMNS),)](
            dhidden_TF,
            gate_up_TF2,
            du_TR,
            a_RF,
            dhidden_TF if scale_F2 is None else scale_F2,
            dhidden_TF if largest_T is None else largest_T,
            num_rows,
            width,
            gate_up_TF2.stride(0),
            du_TR.stride(0),
            a_RF.stride(0),
            RANK=rank,
            GELU=activation == "gelu_tanh",
            FIND_LARGEST=largest_T is not None,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            RANKS=tiles.ranks_at_once(rank),
            num_warps=WARPS,
        )
