"""Every op on a GPU: the same checks as on the CPU, at the CPU's odd shapes and at a model's."""

from __future__ import annotations

import pytest
import torch
from kernels import op_cases as cases

from whippet.kernels import frozen_linear, nf4
from whippet.kernels.gated_mlp import Activation
from whippet.kernels.nf4 import dequantize_nf4, join_rows, quantize_nf4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
activations = pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
dtypes = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
shapes = pytest.mark.parametrize("shape", [*cases.SHAPES, (300, 4096)], ids=str)
strided = pytest.mark.parametrize("strided", [False, True])


@dtypes
@shapes
@strided
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    cases.check_rms_norm(shape, dtype, "cuda", strided=strided)


@dtypes
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (63, 20), (123, 128)])
@strided
def test_rope(num_tokens: int, head_dim: int, dtype: torch.dtype, strided: bool) -> None:
    cases.check_rope(num_tokens, head_dim, dtype, "cuda", strided=strided)


@dtypes
@shapes
@strided
@activations
def test_gated(shape: tuple[int, int], dtype: torch.dtype, strided: bool, activation: Activation) -> None:
    cases.check_gated(shape, dtype, "cuda", strided=strided, activation=activation)


@dtypes
@shapes
def test_offset_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    cases.check_offset_norm(shape, dtype, "cuda")


@dtypes
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (63, 20)])
@pytest.mark.parametrize(("offset", "strided"), [(False, True), (True, False)])
def test_norm_and_rope(num_tokens: int, head_dim: int, offset: bool, strided: bool, dtype: torch.dtype) -> None:
    cases.check_norm_and_rope(num_tokens, head_dim, dtype, "cuda", offset=offset, strided=strided)


@dtypes
@pytest.mark.parametrize("lengths", [(63,), (31, 31, 31), (7, 1, 1, 30, 12), (100, 431)], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_attention(lengths: tuple[int, ...], kv_heads: int, dtype: torch.dtype) -> None:
    cases.check_attention(lengths, dtype, "cuda", kv_heads=kv_heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", [(63,), (31, 31, 31), (7, 1, 1, 30, 12), (100, 431)], ids=str)
@pytest.mark.parametrize(("window", "softcap"), [(20, None), (0, 0.7), (20, 0.7)])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_windows_and_caps(
    lengths: tuple[int, ...], window: int, softcap: float | None, head_dim: int, dtype: torch.dtype
) -> None:
    cases.check_attention(lengths, dtype, "cuda", window=window, softcap=softcap, head_dim=head_dim)


@dtypes
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("dropped", ["none", "shared", "each"])
def test_frozen_linear(dtype: torch.dtype, quantised: bool, dropped: str) -> None:
    weight_NK = cases.random(123, 100, dtype=torch.float32, device="cuda", seed=5, grad=False)
    cases.check_frozen_linear(quantize_nf4(weight_NK) if quantised else weight_NK, dtype, "cuda", dropped=dropped)


@dtypes
@pytest.mark.parametrize("quantised", [False, True])
def test_gated_linear(dtype: torch.dtype, quantised: bool) -> None:
    weight_NF = cases.random(100, 123, dtype=torch.float32, device="cuda", seed=5, grad=False)
    cases.check_gated_linear(quantize_nf4(weight_NF) if quantised else weight_NF, dtype, "cuda", 63)


@dtypes
@pytest.mark.parametrize("ranks", [(1,), (16,), (16, 8), (60, 40)], ids=str)
def test_gated_linear_of_ranks(dtype: torch.dtype, ranks: tuple[int, ...]) -> None:
    weight_NF = cases.random(48, 150, dtype=torch.float32, device="cuda", seed=5, grad=False)
    cases.check_gated_linear(weight_NF, dtype, "cuda", 45, ranks)


@dtypes
@pytest.mark.parametrize("rank", [0, 1, 4, 16, 24, 100, 256])
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (45, 150), (64, 64), (300, 14336)])
@activations
def test_gated_backward(tokens: int, width: int, rank: int, dtype: torch.dtype, activation: Activation) -> None:
    cases.check_gated_backward(tokens, width, rank, dtype, "cuda", activation)


@dtypes
@pytest.mark.parametrize(("rows", "vocabulary", "chunk_rows"), [(1, 63, 8), (63, 100, 16), (123, 431, 123)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_linear_cross_entropy(
    rows: int, vocabulary: int, chunk_rows: int, softcap: float | None, dtype: torch.dtype
) -> None:
    cases.check_cross_entropy(rows, vocabulary, dtype, "cuda", chunk_rows, softcap)


@dtypes
@pytest.mark.parametrize("halved", [False, True])
def test_frozen_linear_with_room(dtype: torch.dtype, halved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if halved:
        monkeypatch.setattr(frozen_linear, "HALVED", 1)
    weight_NK = cases.random(512, 64, dtype=torch.float32, device="cuda", seed=5, grad=False)
    assert frozen_linear.room_wanted(quantize_nf4(weight_NK), 16, dtype) == (0 if dtype == torch.float32 else 16)
    # Where it is wanted: in fp32 one longer sum is 2.08 times as far off as torch's, and twice is allowed.
    cases.check_frozen_linear(quantize_nf4(weight_NK), dtype, "cuda", room=dtype != torch.float32)


@dtypes
@pytest.mark.parametrize("gap", [8, 24, 3])
def test_dequantise_into_rows_with_gaps(dtype: torch.dtype, gap: int) -> None:
    weight = quantize_nf4(cases.random(123, 440, dtype=torch.float32, device="cuda", seed=0, grad=False))
    out = torch.full((123, 440 + gap), float("nan"), dtype=dtype, device="cuda")
    dequantize_nf4(weight, dtype, out[:, :440])
    assert torch.equal(out[:, :440], dequantize_nf4(weight, dtype))
    assert out[:, 440:].isnan().all()


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (123, 431), (1, 8), (63, 104), (123, 440), (4096, 1024)], ids=str)
@pytest.mark.parametrize("double", [False, True])
def test_dequantise_equals_the_cpu(shape: tuple[int, int], dtype: torch.dtype, double: bool) -> None:
    weight = quantize_nf4(cases.random(*shape, dtype=torch.float32, device="cpu", seed=0, grad=False), double=double)
    there = weight.to("cuda")
    expected = dequantize_nf4(weight, dtype)
    by_torch = torch.empty(weight.numel, dtype=dtype, device="cuda")
    nf4.dequantize_torch(there, by_torch)
    assert torch.equal(dequantize_nf4(there, dtype).cpu(), expected)
    assert torch.equal(by_torch.view(shape).cpu(), expected)


def test_dequantise_joined_parts() -> None:
    parts = [
        quantize_nf4(cases.random(rows, 128, dtype=torch.float32, device="cuda", seed=rows, grad=False))
        for rows in (128, 128, 77)
    ]
    joined = join_rows(parts)
    assert joined.offset is not None and joined.offset.ndim == 1
    assert torch.equal(dequantize_nf4(joined), torch.cat([dequantize_nf4(part) for part in parts]))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_codes_equal_the_cuda_backend_of_bitsandbytes(dtype: torch.dtype, double: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = cases.random(1024, 1024, dtype=dtype, device="cuda", seed=0, grad=False)
    weight[3] = 0.0
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    ours = quantize_nf4(weight, double=double)
    assert torch.equal(ours.codes, codes.view(-1))
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(dequantize_nf4(ours), functional.dequantize_4bit(codes, state))
