"""``kernels/copies.py`` under Triton's interpreter; started by ``test_triton.py``."""

from __future__ import annotations

import pytest
import torch
from kernels.copies_cases import check_copies

from whippet.kernels import triton_jit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_copies(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_jit, "usable", lambda x: True)
    check_copies(dtype, "cpu")
