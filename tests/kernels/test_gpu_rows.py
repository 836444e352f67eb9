"""Products of a few rows on a GPU, at the shapes of an 8B model."""

from __future__ import annotations

import pytest
import torch
from kernels import dense_rows_cases as cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 64])
@pytest.mark.parametrize("shape", [(20, 832), (6144, 4096), (4096, 14336), (28672, 4096)], ids=str)
def test_dense_rows(shape: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    cases.check_rows(rows, *shape, dtype, "cuda")


@pytest.mark.parametrize("shape", [(20, 832), (4096, 4096), (28672, 4096)], ids=str)
def test_a_row_alone(shape: tuple[int, int]) -> None:
    cases.check_alone(33, *shape, torch.bfloat16, "cuda")
