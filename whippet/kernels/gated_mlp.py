"""The gated activation of a Llama MLP (SwiGLU, Shazeer 2020, https://arxiv.org/abs/2002.05202).

    y = silu(g) · u        silu(g) = g · sigmoid(g)

In: gate_up [T, 2F], the gate g in the first half, u in the second. Out: y [T, F] in the same dtype. Kept for the
backward pass: the input; the activation is computed again.

Shapes: T tokens, F intermediate size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whippet.kernels import triton_jit
from whippet.kernels.triton_jit import tl

BLOCK = 1024
"""Columns of one program."""


def silu_mul(gate_up_TF2: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` [T, F] for ``gate_up_TF2`` [T, 2F]."""
    return _SiluMul.apply(gate_up_TF2)


def forward_torch(gate_up_TF2: Tensor) -> Tensor:
    """The definition."""
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_TF) * up_TF


def backward_torch(grad_TF: Tensor, gate_up_TF2: Tensor) -> Tensor:
    """dg = dy · u · s · (1 + g · (1 - s)) and du = dy · g · s with s = sigmoid(g); [T, 2F], formed in fp32."""
    gate_TF, up_TF = (half.float() for half in gate_up_TF2.chunk(2, dim=-1))
    grad32_TF = grad_TF.float()
    sigmoid_TF = torch.sigmoid(gate_TF)
    out_TF2 = torch.empty_like(gate_up_TF2, memory_format=torch.contiguous_format)
    dgate_TF, dup_TF = out_TF2.chunk(2, dim=-1)
    dgate_TF.copy_(grad32_TF * up_TF * sigmoid_TF * (1 + gate_TF * (1 - sigmoid_TF)))
    dup_TF.copy_(grad32_TF * gate_TF * sigmoid_TF)
    return out_TF2


@triton_jit.jit
def _forward_kernel(x_ptr, y_ptr, x_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * width + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton_jit.jit
def _backward_kernel(grad_ptr, x_ptr, dx_ptr, grad_stride, x_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    grad = tl.load(grad_ptr + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    dgate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    dup = grad * gate * sigmoid
    tl.store(dx_ptr + row * 2 * width + columns, dgate.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dx_ptr + row * 2 * width + width + columns, dup.to(dx_ptr.dtype.element_ty), mask=inside)


def forward_triton(gate_up_TF2: Tensor) -> Tensor:
    """As ``forward_torch``, in one pass and rounded once."""
    x_TF2 = gate_up_TF2 if gate_up_TF2.stride(-1) == 1 else gate_up_TF2.contiguous()
    num_rows, width = len(x_TF2), x_TF2.shape[1] // 2
    y_TF = torch.empty(num_rows, width, dtype=x_TF2.dtype, device=x_TF2.device)
    if num_rows:
        grid = (num_rows, -(-width // BLOCK))
        _forward_kernel[grid](x_TF2, y_TF, x_TF2.stride(0), width, BLOCK=BLOCK)
    return y_TF


def backward_triton(grad_TF: Tensor, gate_up_TF2: Tensor) -> Tensor:
    """As ``backward_torch``, in one pass."""
    x_TF2 = gate_up_TF2 if gate_up_TF2.stride(-1) == 1 else gate_up_TF2.contiguous()
    grad_TF = grad_TF if grad_TF.stride(-1) == 1 else grad_TF.contiguous()
    num_rows, width = grad_TF.shape
    dx_TF2 = torch.empty(x_TF2.shape, dtype=x_TF2.dtype, device=x_TF2.device)
    if num_rows:
        grid = (num_rows, -(-width // BLOCK))
        _backward_kernel[grid](grad_TF, x_TF2, dx_TF2, grad_TF.stride(0), x_TF2.stride(0), width, BLOCK=BLOCK)
    return dx_TF2


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TF2: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_TF2)
        return forward_triton(gate_up_TF2) if triton_jit.usable(gate_up_TF2) else forward_torch(gate_up_TF2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> Tensor:
        (gate_up_TF2,) = ctx.saved_tensors
        run = backward_triton if triton_jit.usable(gate_up_TF2) else backward_torch
        return run(grad_TF, gate_up_TF2)
