"""Types of GGUF: bytes equal to the gguf package's where it writes them, numbers equal where it reads, errors small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.weights.gguf_blocks import KINDS, NUMBERS, dequantise, quantise
from whippet.weights.gguf_kquants import affine_search, symmetric_search

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
NORMAL_ERRORS = {"q8_0": 0.00535, "q4_0": 0.0859, "q4_k": 0.0714, "q5_k": 0.0362, "q6_k": 0.01775}
"""Relative RMSE over normal weights. ggml 0.13's own quantiser has the same to four digits, on the same numbers."""


def drawn(rows: int = 32, columns: int = 512) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


def hard() -> Tensor:
    """Zeros, one constant, one sign, halves between two codes, two numbers of one magnitude, a very large range."""
    rows = torch.zeros(8, 256)
    rows[1], rows[2], rows[3] = 0.3, -0.7, drawn(1, 256).abs() + 1
    rows[4] = torch.arange(256).float() - 127.5
    rows[5, ::2], rows[5, 1::2] = 1.0, -1.0
    rows[6] = drawn(1, 256) * torch.logspace(-6, 3, 256)
    rows[7, 200] = -3.0
    return rows


@pytest.mark.parametrize("name", KINDS)
def test_bytes_mean_what_the_package_reads(name: str) -> None:
    kind = KINDS[name]
    number = gguf.GGMLQuantizationType(kind.number)
    assert gguf.constants.GGML_QUANT_SIZES[number] == (kind.weights, kind.nbytes) and NUMBERS[kind.number] is kind
    for weights in (drawn(), hard()):
        packed = quantise(weights, kind, where="x")
        theirs = packed.numpy().view(np.float32) if name == "f32" else gguf.quants.dequantize(packed.numpy(), number)
        assert np.array_equal(dequantise(packed, kind).numpy(), theirs.reshape(weights.shape))
        if name in ("f16", "bf16", "q8_0", "q4_0"):
            assert np.array_equal(gguf.quants.quantize(weights.numpy(), number).view(np.uint8), packed.numpy())


@pytest.mark.parametrize(("name", "wanted"), NORMAL_ERRORS.items())
def test_errors_over_normal_weights_are_ggmls(name: str, wanted: float) -> None:
    weights = drawn(128, 1024)
    back = dequantise(quantise(weights, KINDS[name], where="x"), KINDS[name])
    assert float((back - weights).norm() / weights.norm()) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(("levels", "narrowest", "tries", "gain"), [(15, -1.0, 20, 0.06), (31, -0.5, 15, 0.02)])
def test_searched_scales_beat_those_of_the_range(levels: int, narrowest: float, tries: int, gain: float) -> None:
    x = drawn(256, 32)

    def error(scale: Tensor, offset: Tensor) -> float:
        codes = ((x + offset) / scale).round().clamp(0, levels)
        return float((scale * codes - offset - x).norm())

    low = x.amin(-1, keepdim=True)
    plain = error((x.amax(-1, keepdim=True) - low) / levels, -low)
    assert error(*affine_search(x, levels, narrowest, tries)) < (1 - gain) * plain


def test_a_searched_symmetric_scale_beats_the_range() -> None:
    x = drawn(256, 16)

    def error(scale: Tensor) -> float:
        return float((scale * (x / scale).round().clamp(-8, 7) - x).norm())

    place = x.abs().argmax(-1, keepdim=True)
    assert error(symmetric_search(x, 8)) < 0.97 * error(x.gather(-1, place) / -8)


def test_what_the_search_finds_for_nothing_is_nothing() -> None:
    for name in ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0"):
        packed = quantise(torch.zeros(2, 256), KINDS[name], where="x")
        assert not dequantise(packed, KINDS[name]).any(), name


def test_what_a_kind_cannot_hold_is_said() -> None:
    with pytest.raises(ModelError, match="q4_k holds rows of whole blocks of 256, not of 64"):
        quantise(torch.zeros(2, 64), KINDS["q4_k"], where="x")
    with pytest.raises(ModelError, match="here holds values that are not finite"):
        quantise(torch.tensor([[1.0, float("nan")]]), KINDS["f32"], where="here")
    for name in ("f16", "q8_0", "q6_k"):
        with pytest.raises(ModelError, match=f"here: values or their scales are too large for {name}"):
            quantise(torch.full((1, 256), 1e9), KINDS[name], where="here")
