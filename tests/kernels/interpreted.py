"""The Triton kernels under Triton's interpreter; started by ``test_triton.py`` in a process of its own, since Triton
reads its switch when it is imported."""

from __future__ import annotations

import pytest
import torch
from kernels import op_cases as cases

from whippet.kernels import nf4, triton_jit
from whippet.kernels.nf4 import dequantize_nf4, join_rows, quantize_nf4

# The interpreter cuts fp32 down to bf16 where a GPU rounds, so that bf16 is left to test_gpu.py.
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
# A program a row: few rows keep the interpreter quick.
shapes = pytest.mark.parametrize("shape", [(1, 64), (7, 100), (5, 431)], ids=str)
strided = pytest.mark.parametrize("strided", [False, True])


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_jit, "usable", lambda x: True)


@dtypes
@shapes
@strided
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    cases.check_rms_norm(shape, dtype, "cpu", strided=strided)


@dtypes
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (7, 20), (5, 16)])
@strided
def test_rope(num_tokens: int, head_dim: int, dtype: torch.dtype, strided: bool) -> None:
    cases.check_rope(num_tokens, head_dim, dtype, "cpu", strided=strided)


@dtypes
@shapes
@strided
def test_silu_mul(shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    cases.check_silu_mul(shape, dtype, "cpu", strided=strided)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (123, 431), (512, 64)], ids=str)
@pytest.mark.parametrize("double", [False, True])
def test_dequantise_equals_the_reference(shape: tuple[int, int], dtype: torch.dtype, double: bool) -> None:
    weight = quantize_nf4(cases.random(*shape, dtype=torch.float32, device="cpu", seed=0, grad=False), double=double)
    expected = torch.empty(weight.numel, dtype=dtype)
    nf4.dequantize_torch(weight, expected)
    assert torch.equal(dequantize_nf4(weight, dtype).view(-1), expected)


def test_dequantise_joined_parts() -> None:
    parts = [
        quantize_nf4(cases.random(rows, 128, dtype=torch.float32, device="cpu", seed=rows, grad=False))
        for rows in (128, 128, 77)
    ]
    joined = join_rows(parts)
    assert joined.offset is not None and joined.offset.ndim == 1
    assert torch.equal(dequantize_nf4(joined), torch.cat([dequantize_nf4(part) for part in parts]))
