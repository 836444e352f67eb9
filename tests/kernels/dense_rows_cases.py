"""Checks of ``dense_rows`` on any device."""

from __future__ import annotations

import torch
from kernels.op_cases import random
from tolerance import assert_accurate

from whippet.kernels.dense_rows import applies, dense_rows, dense_rows_reference


def check_rows(num_rows: int, num_outputs: int, width: int, dtype: torch.dtype, device: str) -> None:
    """Within twice torch's error, from strided rows too."""
    weight = random(num_outputs, width, dtype=dtype, device=device, seed=0, grad=False)
    x_TK = random(num_rows, width, dtype=dtype, device=device, seed=1, grad=False, strided=True)
    assert applies(x_TK, weight)
    exact = x_TK.double() @ weight.double().T
    assert_accurate(dense_rows(x_TK, weight), x_TK @ weight.T, exact)
    assert_accurate(dense_rows_reference(x_TK, weight), x_TK @ weight.T, exact)
    # The same sums, not rounded.
    assert torch.equal(dense_rows(x_TK, weight, torch.float32).to(dtype), dense_rows(x_TK, weight))


def check_alone(num_rows: int, num_outputs: int, width: int, dtype: torch.dtype, device: str) -> None:
    """A row's result is the same to the bit, whatever is beside it."""
    weight = random(num_outputs, width, dtype=dtype, device=device, seed=0, grad=False)
    x_TK = random(num_rows, width, dtype=dtype, device=device, seed=1, grad=False)
    together = dense_rows(x_TK, weight)
    for row in range(num_rows):
        assert torch.equal(dense_rows(x_TK[row : row + 1], weight)[0], together[row]), row
