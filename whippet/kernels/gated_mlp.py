"""The gated activation of an MLP (SwiGLU and GeGLU, Shazeer 2020, https://arxiv.org/abs/2002.05202).

    y = act(g) · u        act(g) = g · s        s = sigmoid(p(g))        act'(g) = s · (1 + g · p'(g) · (1 - s))

    silu:       p(g) = g
    gelu_tanh:  p(g) = 2 √(2 / π) · (g + 0.044715 g³), since (1 + tanh(x)) / 2 = sigmoid(2x)

In: gate_up [T, 2F], the gate g in the first half, u in the second. Out: y [T, F] in the same dtype. Kept for the
backward pass: the input; the activation is computed again. For ``gated_linear.py`` there is a pass that first adds to
g and u what adapters add to them, and can give y in FP8 too (``completed``).

Shapes: T tokens, F intermediate size, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from whippet.kernels import fp8, tiles, triton_jit
from whippet.kernels.fp8 import Added, FP8Tensor
from whippet.kernels.tiles import low_rank, raise_largest, tile_of
from whippet.kernels.triton_jit import tl

Activation = Literal["silu", "gelu_tanh"]
BLOCK = 1024
"""Columns of one program."""
ROWS, COLUMNS, WARPS = 16, 128, 4
"""Of one program that adds u · Bᵀ first: 16 numbers of gate and as many of up a thread, 128 bytes of a row, which are a
line of memory. With fewer rows B would be read as often as gate_up itself."""


def gated(gate_up_TF2: Tensor, activation: Activation = "silu") -> Tensor:
    """Return ``act(gate) * up`` [T, F] for ``gate_up_TF2`` [T, 2F]."""
    return _Gated.apply(gate_up_TF2, activation)


def forward_torch(gate_up_TF2: Tensor, activation: Activation = "silu") -> Tensor:
    """The definition."""
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(gate_TF, approximate="tanh") * up_TF
    return torch.nn.functional.silu(gate_TF) * up_TF


def backward_torch(grad_TF: Tensor, gate_up_TF2: Tensor, activation: Activation = "silu") -> Tensor:
    """dg = dy · u · act'(g) and du = dy · act(g); [T, 2F], formed in fp32."""
    gate_TF, up_TF = (half.float() for half in gate_up_TF2.chunk(2, dim=-1))
    grad32_TF = grad_TF.float()
    out_TF2 = torch.empty_like(gate_up_TF2, memory_format=torch.contiguous_format)
    dgate_TF, dup_TF = out_TF2.chunk(2, dim=-1)
    if activation == "gelu_tanh":
        dgate_TF.copy_(torch.ops.aten.gelu_backward(grad32_TF * up_TF, gate_TF, approximate="tanh"))
        dup_TF.copy_(grad32_TF * torch.nn.functional.gelu(gate_TF, approximate="tanh"))
        return out_TF2
    sigmoid_TF = torch.sigmoid(gate_TF)
    dgate_TF.copy_(grad32_TF * up_TF * sigmoid_TF * (1 + gate_TF * (1 - sigmoid_TF)))
    dup_TF.copy_(grad32_TF * gate_TF * sigmoid_TF)
    return out_TF2


@triton_jit.jit
def gate_of(gate, GELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """sigmoid(p(gate)), one less it, and gate · p'(gate)."""
    if GELU:  # the first number is 2 √(2 / π)
        square = gate * gate
        place = 1.5957691216057308 * gate * (1 + 0.044715 * square)
        # Both s and 1 - s from the exponential: of a difference from one only the last bits would be left, and for a
        # large gate the gradient multiplies them by gate · p'. Rounded division, since a GPU's own is two units off.
        power = tl.exp(-tl.abs(place))
        greater = tl.div_rn(1.0, 1.0 + power)
        lesser = power * greater
        sigmoid = tl.where(place < 0, lesser, greater)
        rest = tl.where(place < 0, greater, lesser)
        steep = 1.5957691216057308 * gate * (1 + 3 * 0.044715 * square)
    else:
        sigmoid = tl.sigmoid(gate)
        rest = 1 - sigmoid
        steep = gate
    return sigmoid, rest, steep


@triton_jit.jit
def _forward_kernel(x_ptr, y_ptr, x_stride, width, GELU: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid, _, _ = gate_of(gate, GELU)
    y = gate * sigmoid * up
    tl.store(y_ptr + row * width + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton_jit.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, x_ptr, dx_ptr, grad_stride, x_stride, width, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    grad = tl.load(grad_ptr + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid, rest, steep = gate_of(gate, GELU)
    dgate = grad * up * sigmoid * (1 + steep * rest)
    dup = grad * gate * sigmoid
    tl.store(dx_ptr + row * 2 * width + columns, dgate.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dx_ptr + row * 2 * width + width + columns, dup.to(dx_ptr.dtype.element_ty), mask=inside)


@triton_jit.jit
def _complete_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    y_ptr,
    gate_u_ptr,
    gate_b_ptr,
    up_u_ptr,
    up_b_ptr,
    largest_ptr,
    num_rows,
    width,
    x_stride,
    u_stride,
    b_stride,
    GATE_RANK: tl.constexpr,
    UP_RANK: tl.constexpr,
    GELU: tl.constexpr,
    FIND_LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATE_RANKS: tl.constexpr,
    UP_RANKS: tl.constexpr,
):
    rows, columns = tile_of(tl.program_id(0), width, ROWS, COLUMNS)
    inside_rows, inside_columns = rows < num_rows, columns < width
    inside = inside_rows[:, None] & inside_columns[None, :]
    wide_rows = rows.to(tl.int64)[:, None]
    gate_ptr = x_ptr + wide_rows * x_stride + columns[None, :]
    up_ptr = gate_ptr + width
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr, mask=inside, other=0.0).to(tl.float32)
    u_place, b_place = wide_rows * u_stride, columns[None, :] * b_stride
    gate_u_ptr, gate_b_ptr = gate_u_ptr + u_place, gate_b_ptr + b_place
    up_u_ptr, up_b_ptr = up_u_ptr + u_place, up_b_ptr + b_place
    gate += low_rank(gate_u_ptr, 1, inside_rows, gate_b_ptr, 1, inside_columns, GATE_RANK, ROWS, COLUMNS, GATE_RANKS)
    up += low_rank(up_u_ptr, 1, inside_rows, up_b_ptr, 1, inside_columns, UP_RANK, ROWS, COLUMNS, UP_RANKS)
    kind = x_ptr.dtype.element_ty
    gate, up = gate.to(kind), up.to(kind)
    tl.store(gate_ptr, gate, mask=inside)
    tl.store(up_ptr, up, mask=inside)
    # Of the rounded sums, which is what the backward pass will read.
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    sigmoid, _, _ = gate_of(gate, GELU)
    y = (gate * sigmoid * up).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + wide_rows * width + columns[None, :], y, mask=inside)
    if FIND_LARGEST:
        raise_largest(largest_ptr + rows, tl.abs(y.to(tl.float32)), inside_rows)


def completed(
    gate_up_TF2: Tensor, added: Sequence[Added], *, in_fp8: bool, activation: Activation = "silu"
) -> tuple[Tensor, FP8Tensor | None]:
    """Add u · Bᵀ in place, ``added`` being u and B of gate and those of up. Returns y, and y in FP8 by rows if that is
    asked for. With kernels one pass does it, and a second one makes FP8, which knows each row's largest number."""
    if not triton_jit.usable(gate_up_TF2):
        for half_TF, (u_TR, b_FR) in zip(gate_up_TF2.chunk(2, dim=-1), added, strict=True):
            half_TF.addmm_(u_TR, b_FR.T)
        y_TF = forward_torch(gate_up_TF2, activation)
        return y_TF, fp8.quantize_rows(y_TF) if in_fp8 else None
    if gate_up_TF2.dtype == torch.float32:
        # No training computes in fp32 on a GPU, and torch's own product is the more exact one.
        for half_TF, (u_TR, b_FR) in zip(gate_up_TF2.chunk(2, dim=-1), added, strict=True):
            half_TF.addmm_(u_TR, b_FR.T)
        added = [(u_TR[:, :0], b_FR[:, :0]) for u_TR, b_FR in added]
    (gate_u_TR, gate_b_FR), (up_u_TR, up_b_FR) = added
    assert gate_up_TF2.stride(1) == 1
    # Both are parts of one matrix.
    assert gate_u_TR.stride() == up_u_TR.stride() and gate_b_FR.stride() == up_b_FR.stride()
    assert gate_u_TR.stride(1) == gate_b_FR.stride(1) == 1 and gate_u_TR.dtype == gate_b_FR.dtype
    num_rows, width = len(gate_up_TF2), gate_up_TF2.shape[1] // 2
    y_TF = torch.empty(num_rows, width, dtype=gate_up_TF2.dtype, device=gate_up_TF2.device)
    find_largest = in_fp8 and fp8.rows_by_kernels(gate_up_TF2)
    largest_T = fp8.no_largest(gate_up_TF2) if find_largest else None
    if y_TF.numel():
        _complete_kernel[(-(-num_rows // ROWS) * -(-width // COLUMNS),)](
            gate_up_TF2,
            y_TF,
            gate_u_TR,
            gate_b_FR,
            up_u_TR,
            up_b_FR,
            y_TF if largest_T is None else largest_T,
            num_rows,
            width,
            gate_up_TF2.stride(0),
            gate_u_TR.stride(0),
            gate_b_FR.stride(0),
            GATE_RANK=gate_u_TR.shape[1],
            UP_RANK=up_u_TR.shape[1],
            GELU=activation == "gelu_tanh",
            FIND_LARGEST=find_largest,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            GATE_RANKS=tiles.ranks_at_once(gate_u_TR.shape[1]),
            UP_RANKS=tiles.ranks_at_once(up_u_TR.shape[1]),
            num_warps=WARPS,
        )
    if not gate_up_TF2.is_inference():  # such a tensor has no version
        increment_version(gate_up_TF2)
    if largest_T is not None:
        return y_TF, fp8.rows_of_largest(y_TF, largest_T)
    return y_TF, fp8.quantize_rows(y_TF) if in_fp8 else None


def forward_triton(gate_up_TF2: Tensor, activation: Activation = "silu") -> Tensor:
    """As ``forward_torch``, in one pass and rounded once."""
    x_TF2 = gate_up_TF2 if gate_up_TF2.stride(-1) == 1 else gate_up_TF2.contiguous()
    num_rows, width = len(x_TF2), x_TF2.shape[1] // 2
    y_TF = torch.empty(num_rows, width, dtype=x_TF2.dtype, device=x_TF2.device)
    if num_rows:
        grid = (num_rows, -(-width // BLOCK))
        _forward_kernel[grid](x_TF2, y_TF, x_TF2.stride(0), width, GELU=activation == "gelu_tanh", BLOCK=BLOCK)
    return y_TF


def backward_triton(grad_TF: Tensor, gate_up_TF2: Tensor, activation: Activation = "silu") -> Tensor:
    """As ``backward_torch``, in one pass."""
    x_TF2 = gate_up_TF2 if gate_up_TF2.stride(-1) == 1 else gate_up_TF2.contiguous()
    grad_TF = grad_TF if grad_TF.stride(-1) == 1 else grad_TF.contiguous()
    num_rows, width = grad_TF.shape
    dx_TF2 = torch.empty(x_TF2.shape, dtype=x_TF2.dtype, device=x_TF2.device)
    if num_rows:
        grid = (num_rows, -(-width // BLOCK))
        strides, gelu = (grad_TF.stride(0), x_TF2.stride(0)), activation == "gelu_tanh"
        _backward_kernel[grid](grad_TF, x_TF2, dx_TF2, *strides, width, GELU=gelu, BLOCK=BLOCK)
    return dx_TF2


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TF2: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate_up_TF2)
        ctx.activation = activation
        run = forward_triton if triton_jit.usable(gate_up_TF2) else forward_torch
        return run(gate_up_TF2, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, None]:
        (gate_up_TF2,) = ctx.saved_tensors
        run = backward_triton if triton_jit.usable(gate_up_TF2) else backward_torch
        return run(grad_TF, gate_up_TF2, ctx.activation), None
