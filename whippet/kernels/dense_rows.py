"""A few rows times a dense matrix, read once: what the next tokens of replies are computed with.

    y[t, n] = Σₖ x[t, k] · w[n, k]

One row meets each weight once, so such a product takes as long as reading the matrix does. The library's product does
that too, but in an order of sums that it chooses by the number of rows; here a row's result is the same to the bit
whatever rows lie beside it, so that a reply does not depend on what else is answered at that time. A program multiplies
a part of the inputs for some outputs, with the matrix's rows along the tensor cores' long side: 16 rows of x cost what
one does. A second kernel adds the parts in their order.

In: x [T, K] and W [N, K] in bf16 or fp16. Out: y [T, N] in x's dtype, or in fp32. There is no gradient: it serves
inference. Shapes: T rows, K inputs, N outputs, S parts of the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whippet.kernels import triton_jit
from whippet.kernels.triton_jit import tl

MOST_ROWS = 64
"""More rows are as quick in a product that shares the matrix among them."""
WIDE, WIDE_TILE, NARROW_TILE = 16384, (64, 128), (64, 64)
"""Outputs and inputs of one program, where there are so many outputs, and where there are fewer: measured on an H200
(docs/log.md, 2026-11-25)."""
PROGRAMS = 1056
"""That many are wanted at least: eight for each processor of an H200."""
SUMS = 256
"""Numbers of the result that one program adds up."""


def applies(x_TK: Tensor, weight_NK: Tensor) -> bool:
    """Whether ``dense_rows`` serves this product."""
    kinds = x_TK.dtype == weight_NK.dtype and x_TK.dtype in (torch.bfloat16, torch.float16)
    whole = x_TK.ndim == 2 and weight_NK.is_contiguous() and weight_NK.shape[1] % 16 == 0
    return triton_jit.usable(x_TK) and kinds and whole and 0 < len(x_TK) <= MOST_ROWS


def dense_rows(x_TK: Tensor, weight_NK: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """x · Wᵀ [T, N]; ``applies`` must have said yes."""
    x_TK = x_TK if x_TK.stride(-1) == 1 else x_TK.contiguous()
    num_rows, (num_outputs, width) = len(x_TK), weight_NK.shape
    outputs, inputs = WIDE_TILE if num_outputs >= WIDE else NARROW_TILE
    programs, rounds = -(-num_outputs // outputs), -(-width // inputs)
    each = -(-rounds // min(rounds, max(1, PROGRAMS // programs)))
    parts = -(-rounds // each)
    y_TN = torch.empty(num_rows, num_outputs, dtype=out_dtype or x_TK.dtype, device=x_TK.device)
    sums = y_TN if parts == 1 else y_TN.new_empty(parts, num_rows, num_outputs, dtype=torch.float32)
    _part_kernel[(programs, parts)](
        x_TK,
        weight_NK,
        sums,
        num_rows,
        num_outputs,
        x_TK.stride(0),
        WIDTH=width,
        ROUNDS=each,
        ROWS=max(16, triton_jit.power_of_two(num_rows)),
        OUTPUTS=outputs,
        INPUTS=inputs,
        num_warps=4,
        num_stages=2,
    )
    if parts > 1:
        count = y_TN.numel()
        _sum_kernel[(-(-count // SUMS),)](sums, y_TN, count, PARTS=parts, SUMS=SUMS, num_warps=2)
    return y_TN


def dense_rows_reference(x_TK: Tensor, weight_NK: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """The definition."""
    return (x_TK.float() @ weight_NK.float().T).to(out_dtype or x_TK.dtype)


@triton_jit.jit
def _part_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    sums_ptr,
    num_rows,
    num_outputs,
    x_stride,
    WIDTH: tl.constexpr,
    ROUNDS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    outputs, rows = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, ROWS)
    exists, given = outputs < num_outputs, rows < num_rows
    sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for number in range(0, ROUNDS):
        inputs = (tl.program_id(1) * ROUNDS + number) * INPUTS + tl.arange(0, INPUTS)
        inside = inputs < WIDTH
        w = tl.load(
            weight_ptr + outputs.to(tl.int64)[:, None] * WIDTH + inputs[None, :],
            mask=exists[:, None] & inside[None, :],
            other=0.0,
        )
        x = tl.load(
            x_ptr + rows[None, :] * x_stride + inputs[:, None], mask=given[None, :] & inside[:, None], other=0.0
        )
        sums = tl.dot(w, x, sums)
    places = (tl.program_id(1) * num_rows + rows).to(tl.int64)[None, :] * num_outputs + outputs[:, None]
    tl.store(sums_ptr + places, sums.to(sums_ptr.dtype.element_ty), mask=exists[:, None] & given[None, :])


@triton_jit.jit
def _sum_kernel(sums_ptr, y_ptr, count, PARTS: tl.constexpr, SUMS: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0) * SUMS + tl.arange(0, SUMS)
    inside = places < count
    total = tl.zeros([SUMS], tl.float32)
    for part in range(0, PARTS):
        total += tl.load(sums_ptr + part * count + places, mask=inside, other=0.0)
    tl.store(y_ptr + places, total.to(y_ptr.dtype.element_ty), mask=inside)
