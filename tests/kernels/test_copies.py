"""Many small copies in one launch."""

from __future__ import annotations

import pytest
import torch
from kernels.copies_cases import check_copies

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@DTYPES
def test_copies(dtype: torch.dtype) -> None:
    check_copies(dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@DTYPES
def test_copies_on_a_gpu(dtype: torch.dtype) -> None:
    check_copies(dtype, "cuda")
