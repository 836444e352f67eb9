"""Int8: what is rounded and by how much, outliers, products and gradients, and bitsandbytes' own numbers on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_models import TINY, logits, random_decoder

from whippet import lora
from whippet.errors import ModelError
from whippet.kernels import int8
from whippet.kernels.frozen_linear import frozen_linear, frozen_linear_reference
from whippet.kernels.int8 import Int8Tensor, dequantize_int8, join_rows, outlier_columns, quantize_int8, slice_rows
from whippet.kernels.lora_factors import LoraPart
from whippet.options import LoraOptions

HALF = (torch.bfloat16, torch.float16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outlying(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Activations with two columns in which some number is 6 or more."""
    x_TK = random(rows, width, dtype=torch.float32, seed=3).clamp_(-5, 5)
    x_TK[rows // 2, 3], x_TK[0, width - 1] = 6.0, -40.0
    return x_TK.to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
def test_each_number_is_rounded_to_the_nearest_code(dtype: torch.dtype) -> None:
    weight = random(9, 100, dtype=dtype) * torch.logspace(-6, 3, 9)[:, None].to(dtype)
    weight[4] = 0
    held = quantize_int8(weight)
    assert torch.equal(held.absmax, weight.abs().amax(1).float()) and held.nbytes == 900 + 36
    back = dequantize_int8(held, torch.float64)
    assert bool(((back - weight.double()).abs() <= held.absmax.double()[:, None] / 254 * (1 + 1e-5)).all())
    assert bool((back[4] == 0).all()) and int(held.codes.abs().max()) == 127
    parts = join_rows([slice_rows(held, 0, 4), slice_rows(held, 4, 9)])
    assert torch.equal(parts.codes, held.codes) and torch.equal(parts.absmax, held.absmax)
    assert dequantize_int8(held).dtype == dtype


def test_what_cannot_be_held_is_refused_by_name() -> None:
    weight = torch.ones(9, 5)
    for value in (float("nan"), float("inf"), float("-inf")):
        weight[7, 2] = value
        with pytest.raises(ModelError, match="layer 3: int8 needs finite weights, met NaN or infinity in row 7 of 9"):
            quantize_int8(weight, name="layer 3")
    with pytest.raises(ModelError, match=r"matrix of floats, met torch.int32 of shape \[2, 3\]"):
        quantize_int8(torch.ones(2, 3, dtype=torch.int32))
    with pytest.raises(ModelError, match="one width, dtype and threshold"):
        join_rows([quantize_int8(torch.ones(2, 3)), quantize_int8(torch.ones(2, 3), threshold=0.0)])
    with pytest.raises(ModelError, match="needs codes"):
        Int8Tensor(torch.ones(2, 3, dtype=torch.int8), torch.ones(3), torch.float32)


@pytest.mark.parametrize("threshold", [6.0, 0.0])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_product_is_that_of_the_rounded_numbers(dtype: torch.dtype, threshold: float) -> None:
    x_TK, weight = outlying(37, 100, dtype), quantize_int8(random(63, 100, seed=1), threshold=threshold)
    wanted_TN = int8.product_reference(x_TK.double(), weight)
    got_TN = int8.product(x_TK, weight)
    assert got_TN.dtype == dtype
    # One rounding of the sum in int32, one of the outliers' part, one of both together.
    eps = torch.finfo(dtype).eps
    assert (got_TN - wanted_TN).abs().max() <= 3 * eps * wanted_TN.abs().max()
    exact_TN = x_TK.double() @ dequantize_int8(weight, torch.float64).T
    error = float((wanted_TN - exact_TN).norm() / exact_TN.norm())
    # Apart, 40 costs the others nothing; together, its row has 40 / 127 as its step.
    assert error < 0.012 if threshold else 0.012 < error < 0.05
    none = int8.product(x_TK[:0], weight)
    assert none.shape == (0, 63)


def test_outliers_are_columns() -> None:
    x_TK = outlying(37, 100, torch.bfloat16)
    assert outlier_columns(x_TK, 6.0).tolist() == [3, 99]
    assert outlier_columns(x_TK, 6.5).tolist() == [99]
    assert outlier_columns(x_TK, 0.0).tolist() == []
    x_TK[5, 7] = float("nan")
    assert outlier_columns(x_TK, 6.0).tolist() == [3, 7, 99]
    weight = quantize_int8(random(8, 100, seed=1))
    bad_T = int8.product(x_TK, weight).isnan().any(1)
    assert bad_T.tolist() == [row == 5 for row in range(37)]


def test_scratch_is_bounded_by_going_through_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TK, weight = outlying(100, 64, torch.bfloat16), quantize_int8(random(24, 64, seed=1))
    whole_TN = int8.product(x_TK, weight)
    monkeypatch.setattr(int8, "MOST_SUMS", 24 * 40)
    seen: list[int] = []
    multiplied = int8._multiplied
    monkeypatch.setattr(int8, "_multiplied", lambda left, right: (seen.append(len(left)), multiplied(left, right))[1])
    assert torch.equal(int8.product(x_TK, weight), whole_TN) and seen == [32, 32, 32, 4]


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
def test_a_frozen_layer_over_int8(dtype: torch.dtype) -> None:
    """fp32 activations get the exact product; gradients are those of the dequantised weights in every dtype."""
    x_TK = outlying(37, 64, dtype).requires_grad_()
    weight, bias_N = quantize_int8(random(48, 64, seed=1)), random(48, seed=5)
    a_rK, b_nr = random(4, 64, seed=6).requires_grad_(), random(16, 4, seed=7).requires_grad_()
    part = LoraPart(a_rK, b_nr, slice(8, 24), 0.5)
    wanted_TN = frozen_linear_reference(x_TK, weight, bias_N, [part])
    got_TN = frozen_linear(x_TK, weight, bias_N, [part])
    grad_TN = random(37, 48, dtype=dtype, seed=8)
    wanted, got = (torch.autograd.grad(y, (x_TK, a_rK, b_nr), grad_TN) for y in (wanted_TN, got_TN))
    bound = 1e-5 if dtype == torch.float32 else 0.02
    for one, other in ((wanted_TN, got_TN), *zip(wanted, got, strict=True)):
        assert (one - other).norm() <= bound * one.norm()
    if dtype != torch.float32:
        assert torch.equal(frozen_linear(x_TK, weight), int8.product(x_TK, weight))
    exact_TK = grad_TN.double() @ dequantize_int8(weight, torch.float64)
    plain = int8.input_gradient(grad_TN, weight)
    assert (plain - exact_TK).norm() <= 0.01 * exact_TK.norm()


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_a_decoder_answers_over_int8_as_over_its_weights(compute: torch.dtype) -> None:
    decoder, dense = random_decoder(TINY, dtype=compute), random_decoder(TINY, dtype=compute)
    for (_, projection), (_, other) in zip(decoder.projections(), dense.projections(), strict=True):
        projection.set_quantised(quantize_int8(projection.dense.detach()))
        other.weight = torch.nn.Parameter(projection.weight_fp32())
    decoder.requires_grad_(False)
    lora.attach(decoder, LoraOptions(r=2), seed=0)
    ids = torch.randint(0, 97, (20,), generator=torch.Generator().manual_seed(0))
    wanted, got = logits(dense, ids), logits(decoder, ids)
    assert (wanted - got).abs().max() <= (1e-5 if compute == torch.float32 else 0.05) * wanted.abs().max()
    moved = decoder.to("cpu")
    assert torch.equal(logits(moved, ids), got)


def test_bitsandbytes_rounds_and_multiplies_so_on_a_cpu() -> None:
    functional: Any = pytest.importorskip("bitsandbytes.functional")
    weight, x_TK = random(48, 64, seed=1).half(), outlying(33, 64, torch.float16)
    held = quantize_int8(weight)
    codes, absmax, _ = functional.int8_vectorwise_quant(weight.clone())
    assert torch.equal(held.codes, codes) and torch.equal(held.absmax, absmax)
    back = functional.int8_vectorwise_dequant(codes, absmax)
    assert torch.equal(dequantize_int8(held, torch.float32), back)
    left, scales, columns_O = functional.int8_vectorwise_quant(x_TK.clone(), threshold=6.0)
    assert torch.equal(columns_O, outlier_columns(x_TK, 6.0))
    theirs, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(x_TK, left, codes, scales, absmax, columns_O)
    ours = int8.product(x_TK, held)
    # The same codes and sums; they round 1 / 127² to seven digits, and so now and then the last bit differs.
    assert (ours - theirs).abs().max() <= 2 * torch.finfo(torch.float16).eps * theirs.abs().max()
    assert (ours == theirs).float().mean() > 0.95


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(37, 100, 63), (1, 64, 48), (300, 4096, 1024)], ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_product_on_a_gpu(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rows, width, outputs = shape
    x_TK, weight = outlying(rows, width, dtype), quantize_int8(random(outputs, width, seed=1))
    wanted_TN = int8.product_reference(x_TK.double(), weight)
    there = Int8Tensor(weight.codes.cuda(), weight.absmax.cuda(), weight.dtype, weight.threshold)
    got_TN = int8.product(x_TK.cuda(), there).cpu()
    assert (got_TN - wanted_TN).abs().max() <= 3 * torch.finfo(dtype).eps * wanted_TN.abs().max()
