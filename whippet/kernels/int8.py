"""Products over int8 weights, computed in int8 but for outliers: LLM.int8() (https://arxiv.org/abs/2208.07339).

    y[t, n] = a[t] · s[n] / 127² · Σ over k not in O of x̂[t, k] ŵ[n, k]  +  Σ over k in O of x[t, k] w[n, k]

O are the columns of x in which some |x| reaches the threshold, 6; they are a fraction of a percent of a trained model's
columns, and would cost all others their precision, because a row's scale is its largest number (section 3 of the
paper). x̂ is x quantised by rows, and a the largest |x| of a row that is no outlier (of all columns, as in
bitsandbytes); ŵ is W as it is held (``int8_tensor.py``), w the same dequantised. The first sum is exact: int8 times
int8, added in int32. The second is a product in x's dtype.

    dx = g · w

is computed in g's dtype with W dequantised. W's scales lie along its sum, so they would have to go into g before g is
rounded, and g's own outliers are no few columns; training through a gradient rounded to 8 bit is what the paper leaves
to future work. W dequantised is the very W of the forward pass, which no rounding of g has touched: so dx is the exact
gradient of the product by the weights, up to the rounding of x, which counts as the identity.

In: x [T, K], g [T, N] in the compute dtype; W an ``Int8Tensor`` [N, K]. Out: y [T, N], dx [T, K] in that dtype.
Only 16-bit activations are rounded (``applies``): who asks for fp32 gets the weights' exact product. O is looked up in
a way that waits for the GPU, so a product over int8 weights cannot be recorded in a CUDA graph.

Shapes: T tokens, K inputs, N outputs, O outlier columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whippet.kernels.int8_tensor import (
    LARGEST,
    THRESHOLD,
    Int8Tensor,
    dequantize_int8,
    join_rows,
    quantize_int8,
    rows_int8,
    slice_rows,
)

__all__ = [
    "LARGEST",
    "THRESHOLD",
    "Int8Tensor",
    "applies",
    "dequantize_int8",
    "input_gradient",
    "join_rows",
    "outlier_columns",
    "product",
    "product_reference",
    "quantize_int8",
    "slice_rows",
]

ALIGNED = 8
"""Sides of a weight must be multiples of this for the tensor cores, as torch hands them their work."""
FEWEST_ROWS = 32
"""x is given rows of zeros up to this many on a GPU, where torch multiplies no fewer than 17."""
MOST_SUMS = 1 << 24
"""Numbers of y whose int32 sums and fp32 products are in memory at once, 8 bytes each; and of x as it is rounded."""
PER_SQUARE = 1 / LARGEST**2


def applies(x_TK: Tensor) -> bool:
    """Whether products of ``x_TK`` with int8 weights are computed in int8; else the weights are dequantised."""
    return x_TK.dtype in (torch.bfloat16, torch.float16)


def outlier_columns(x_TK: Tensor, threshold: float) -> Tensor:
    """O: the columns that hold a number of ``threshold`` or more (NaN and infinity too), int64 [O], ascending."""
    if threshold <= 0 or not x_TK.numel():
        return torch.empty(0, dtype=torch.int64, device=x_TK.device)
    return (x_TK.abs().amax(0) < threshold).logical_not_().nonzero().flatten()


def product(x_TK: Tensor, weight: Int8Tensor) -> Tensor:
    """x · Wᵀ [T, N] in x's dtype."""
    assert not (x_TK.is_cuda and torch.cuda.is_current_stream_capturing()), "int8 products wait, and are not recorded"
    columns_O = outlier_columns(x_TK, weight.threshold)
    y_TN = torch.empty(len(x_TK), len(weight.codes), dtype=x_TK.dtype, device=x_TK.device)
    step = max(MOST_SUMS // max(1, *weight.codes.shape), FEWEST_ROWS)
    for start in range(0, len(x_TK), step):
        rows = slice(start, start + step)
        codes_TK, absmax_T = _rows(x_TK[rows], weight.threshold, columns_O)
        sums_TN = _multiplied(codes_TK, weight.codes)
        y_TN[rows] = (absmax_T[:, None] * weight.absmax[None, :]).mul_(sums_TN).mul_(PER_SQUARE)
    if not len(columns_O):
        return y_TN
    return y_TN.addmm_(x_TK[:, columns_O], _columns(weight, columns_O, x_TK.dtype).T)


def product_reference(x_TK: Tensor, weight: Int8Tensor) -> Tensor:
    """The definition, in fp64 throughout but for the codes of x; rounded once."""
    columns_O = outlier_columns(x_TK, weight.threshold)
    codes_TK, absmax_T = _rows(x_TK, weight.threshold, columns_O)
    x_rounded_TK = codes_TK.double() * absmax_T.double()[:, None] / LARGEST
    x_rounded_TK[:, columns_O] = x_TK[:, columns_O].double()
    w_NK = weight.codes.double() * weight.absmax.double()[:, None] / LARGEST
    return (x_rounded_TK @ w_NK.T).to(x_TK.dtype)


def input_gradient(grad_TN: Tensor, weight: Int8Tensor) -> Tensor:
    """g · W [T, K] in g's dtype, W dequantised."""
    return grad_TN @ dequantize_int8(weight, grad_TN.dtype)


def _rows(x_TK: Tensor, threshold: float, columns_O: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of x, zero in the columns O, and absmax of what is no outlier."""
    if not len(columns_O):
        return rows_int8(x_TK)
    codes_TK, absmax_T = rows_int8(x_TK.masked_fill((x_TK.abs() < threshold).logical_not_(), 0))
    return codes_TK.index_fill_(1, columns_O, 0), absmax_T


def _columns(weight: Int8Tensor, columns_O: Tensor, dtype: torch.dtype) -> Tensor:
    """Columns of W, dequantised [N, O]."""
    return dequantize_int8(Int8Tensor(weight.codes[:, columns_O], weight.absmax, weight.dtype), dtype)


def _multiplied(left_TK: Tensor, right_NK: Tensor) -> Tensor:
    """left · rightᵀ of int8, summed exactly: int32 [T, N], or fp64 where torch has no such product."""
    rows, inputs = left_TK.shape
    if not left_TK.is_cuda:
        return torch._int_mm(left_TK, right_NK.T) if left_TK.numel() else left_TK.new_zeros(rows, len(right_NK)).int()
    if inputs % ALIGNED or len(right_NK) % ALIGNED or not inputs:
        return left_TK.double() @ right_NK.double().T
    if rows < FEWEST_ROWS:
        left_TK = functional.pad(left_TK, (0, 0, 0, FEWEST_ROWS - rows))
    return torch._int_mm(left_TK, right_NK.T)[:rows]
