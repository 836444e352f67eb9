"""The Triton kernels under Triton's interpreter; started by ``test_triton.py`` in a process of its own, since Triton
reads its switch when it is imported."""

from __future__ import annotations

import pytest
import torch
from kernels import op_cases as cases
from tolerance import assert_accurate

from whippet.kernels import linear_cross_entropy, nf4, triton_jit
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
@pytest.mark.parametrize(("rows", "vocabulary", "chunk_rows"), [(1, 63, 8), (7, 100, 3), (5, 431, 5)])
@pytest.mark.parametrize("block", [64, 512])
def test_linear_cross_entropy(
    rows: int, vocabulary: int, chunk_rows: int, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "BLOCK", block)
    cases.check_cross_entropy(rows, vocabulary, dtype, "cpu", chunk_rows)


def test_correct_and_logprobs_of_rows() -> None:
    logits = cases.random(7, 100, dtype=torch.float32, device="cpu", seed=0, grad=False)
    labels, weights = torch.where(torch.arange(7) % 2 == 0, logits.argmax(-1), 3), torch.rand(7)
    by_torch = linear_cross_entropy.rows_torch(logits.clone(), labels, weights, torch.float32)
    by_triton = linear_cross_entropy.rows_triton(logits.clone(), labels, weights, torch.float32)
    assert torch.equal(by_triton[1].bool(), by_torch[1]) and int(by_torch[1].sum()) >= 4
    exact = logits.double().log_softmax(-1).gather(1, labels.view(-1, 1)).view(-1)
    assert_accurate(by_triton[0], by_torch[0], exact)
    assert linear_cross_entropy.rows_triton(logits, labels, weights, None)[2] is None


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (123, 431), (1, 8), (63, 104), (123, 440), (512, 64)], ids=str)
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
