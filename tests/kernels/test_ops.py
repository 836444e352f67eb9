"""Every op on the CPU: forward and all gradients within the one tolerance, odd shapes, gaps between rows."""

from __future__ import annotations

import pytest
import torch
from kernels import op_cases as cases

from whippet.kernels import block_attention, frozen_linear, linear_cross_entropy
from whippet.kernels.gated_mlp import Activation
from whippet.kernels.nf4 import quantize_nf4

activations = pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
dtypes = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
shapes = pytest.mark.parametrize("shape", cases.SHAPES, ids=str)


@dtypes
@shapes
@pytest.mark.parametrize("strided", [False, True])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> None:
    cases.check_rms_norm(shape, dtype, "cpu", strided=strided)


@dtypes
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (63, 20), (123, 16)])
@pytest.mark.parametrize("strided", [False, True])
def test_rope(num_tokens: int, head_dim: int, dtype: torch.dtype, strided: bool) -> None:
    cases.check_rope(num_tokens, head_dim, dtype, "cpu", strided=strided)


@dtypes
@shapes
@pytest.mark.parametrize("strided", [False, True])
@activations
def test_gated(shape: tuple[int, int], dtype: torch.dtype, strided: bool, activation: Activation) -> None:
    cases.check_gated(shape, dtype, "cpu", strided=strided, activation=activation)


@dtypes
@shapes
def test_offset_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    cases.check_offset_norm(shape, dtype, "cpu")


@dtypes
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (63, 20)])
@pytest.mark.parametrize(("offset", "strided"), [(False, True), (True, False)])
def test_norm_and_rope(num_tokens: int, head_dim: int, offset: bool, strided: bool, dtype: torch.dtype) -> None:
    cases.check_norm_and_rope(num_tokens, head_dim, dtype, "cpu", offset=offset, strided=strided)


@dtypes
@pytest.mark.parametrize("lengths", [(63,), (5, 5, 5), (7, 1, 1, 0, 30, 12)], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_attention(lengths: tuple[int, ...], kv_heads: int, dtype: torch.dtype) -> None:
    cases.check_attention(lengths, dtype, "cpu", kv_heads=kv_heads)


@dtypes
@pytest.mark.parametrize("lengths", [(63,), (5, 5, 5), (7, 1, 1, 0, 30, 12)], ids=str)
@pytest.mark.parametrize(("window", "softcap"), [(6, None), (0, 0.7), (6, 0.7)])
def test_windows_and_caps(
    lengths: tuple[int, ...], window: int, softcap: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_attention, "BLOCK", 10)
    cases.check_attention(lengths, dtype, "cpu", window=window, softcap=softcap)


@dtypes
@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("dropped", ["none", "shared", "each"])
def test_frozen_linear(dtype: torch.dtype, nf4: bool, dropped: str) -> None:
    weight_NK = cases.random(123, 100, dtype=torch.float32, device="cpu", seed=5, grad=False)
    cases.check_frozen_linear(quantize_nf4(weight_NK) if nf4 else weight_NK, dtype, "cpu", dropped=dropped)


@dtypes
def test_a_wide_weight_goes_by_halves(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantize_nf4(cases.random(512, 64, dtype=torch.float32, device="cpu", seed=5, grad=False))
    seen: list[tuple[int, ...]] = []
    real = frozen_linear.dense
    monkeypatch.setattr(frozen_linear, "dense", lambda w, dtype: seen.append(tuple(w.shape)) or real(w, dtype))
    monkeypatch.setattr(frozen_linear, "HALVED", 512 * 64)
    cases.check_frozen_linear(weight, dtype, "cpu")
    assert seen.count((256, 64)) == 2


@dtypes
@pytest.mark.parametrize("quantised", [False, True])
@activations
def test_gated_linear(dtype: torch.dtype, quantised: bool, activation: Activation) -> None:
    weight_NF = cases.random(100, 123, dtype=torch.float32, device="cpu", seed=5, grad=False)
    weight = quantize_nf4(weight_NF) if quantised else weight_NF
    cases.check_gated_linear(weight, dtype, "cpu", 63 if activation == "silu" else 31, activation=activation)


@dtypes
@pytest.mark.parametrize("ranks", [(1,), (16,), (60, 40)], ids=str)
def test_gated_linear_of_ranks(dtype: torch.dtype, ranks: tuple[int, ...]) -> None:
    weight_NF = cases.random(48, 150, dtype=torch.float32, device="cpu", seed=5, grad=False)
    cases.check_gated_linear(weight_NF, dtype, "cpu", 45, ranks)


@dtypes
@pytest.mark.parametrize(("rows", "vocabulary", "chunk_rows"), [(1, 63, 8), (63, 100, 16), (123, 431, 123)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_linear_cross_entropy(
    rows: int, vocabulary: int, chunk_rows: int, softcap: float | None, dtype: torch.dtype
) -> None:
    cases.check_cross_entropy(rows, vocabulary, dtype, "cpu", chunk_rows, softcap)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_a_row_without_weight_counts_for_nothing(wrong: float) -> None:
    """Even if its logits are not finite: micro-batches are padded with such rows."""
    draw = torch.Generator().manual_seed(1)
    hidden_NH = torch.randn(5, 16, generator=draw)
    hidden_NH[2] = wrong
    hidden_NH.requires_grad_(True)
    head_VH = torch.randn(33, 16, generator=draw)
    weights_N = torch.tensor([1.0, 0.5, 0.0, 1.0, 2.0])
    found = linear_cross_entropy.linear_cross_entropy(hidden_NH, head_VH, torch.arange(5), weights_N, 2)
    found.loss_sum.backward()
    assert found.loss_sum.isfinite() and hidden_NH.grad is not None and hidden_NH.grad.isfinite().all()
    assert (hidden_NH.grad[2] == 0).all() and (hidden_NH.grad[3] != 0).any()
