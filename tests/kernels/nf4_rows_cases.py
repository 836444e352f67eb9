"""Weights and checks of ``nf4_rows``, for the CPU's stand-in and for a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kernels.op_cases import random
from tolerance import assert_accurate
from torch import Tensor

from whippet.kernels.nf4 import NF4Tensor, dequantize_nf4, join_rows, quantize_nf4
from whippet.kernels.nf4_rows import nf4_rows_reference

Product = Callable[[Tensor, NF4Tensor, torch.dtype], Tensor]
"""x, weights, dtype of y → y."""


def weights(num_outputs: int, width: int, dtype: torch.dtype, device: str, nested: int) -> NF4Tensor:
    """``nested``: 0, plain; 1, doubly quantised; 2, two of those joined, below 256 rows of another offset."""
    below = random(num_outputs, width, dtype=dtype, device=device, seed=0, grad=False)
    if nested < 2:
        return quantize_nf4(below, double=nested == 1)
    above = random(256, width, dtype=dtype, device=device, seed=5, grad=False)
    joined = join_rows([quantize_nf4(above * 3 + 1), quantize_nf4(below)])
    assert joined.offset is not None and joined.offset.ndim == 1
    return joined


def check_rows(product: Product, num_rows: int, weight: NF4Tensor, dtype: torch.dtype, *, strided: bool) -> None:
    """Against the NF4 weights themselves within twice the error of torch, which rounds them to ``dtype``."""
    device, width = str(weight.device), weight.shape[1]
    x_TK = random(num_rows, width, dtype=dtype, device=device, seed=1, grad=False, strided=strided)
    exact = x_TK.double() @ dequantize_nf4(weight, torch.float32).double().T
    plain = x_TK @ dequantize_nf4(weight, dtype).T
    y_TN = product(x_TK, weight, dtype)
    assert_accurate(y_TN, plain, exact)
    assert_accurate(nf4_rows_reference(x_TK, weight), plain, exact)
    wide_TN = product(x_TK, weight, torch.float32)
    assert torch.equal(wide_TN.to(dtype), y_TN)
    # With no rounding at the end, what remains is that of 16 levels: GAIN makes it half of that of all weights.
    rounded = x_TK.double() @ dequantize_nf4(weight, dtype).double().T
    assert (wide_TN - exact).norm() < 0.75 * (rounded - exact).norm()


def check_alone(product: Product, num_rows: int, weight: NF4Tensor, dtype: torch.dtype) -> None:
    """A row's result is the same to the bit, whatever is beside it."""
    x_TK = random(num_rows, weight.shape[1], dtype=dtype, device=str(weight.device), seed=1, grad=False)
    together = product(x_TK, weight, dtype)
    for row in (0, num_rows // 2, num_rows - 1):
        assert torch.equal(product(x_TK[row : row + 1], weight, dtype)[0], together[row]), row
