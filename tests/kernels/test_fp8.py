"""FP8: what is rounded and by how much, what is refused, and that the products are those of the rounded numbers."""

from __future__ import annotations

import pytest
import torch
from helpers_models import TINY, stream
from kernels import fp8_cases as cases
from kernels.op_cases import random
from torch import nn

from whippet import lora
from whippet.errors import ModelError
from whippet.kernels import fp8, nf4, nf4_fp8
from whippet.kernels.fp8 import FP8, FP8Tensor, dequantize_fp8, join_rows, quantize_fp8
from whippet.kernels.frozen_linear import frozen_linear
from whippet.kernels.linear_cross_entropy import linear_cross_entropy
from whippet.kernels.lora_factors import LoraPart
from whippet.kernels.nf4 import dequantize_nf4, quantize_nf4, slice_rows
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", cases.WIDTHS)
def test_each_number_is_rounded_to_the_nearest_code(width: int, dtype: torch.dtype) -> None:
    """By at most 1/16 of itself, or half of the least step, 2⁻⁹ of the scale, where it is small in its row."""
    x = cases.rough_rows(7, width, dtype, "cpu")
    held = quantize_fp8(x)
    back = dequantize_fp8(held, torch.float64)
    step = held.scales.double()[:, None]
    # The factor and the scale are rounded in fp32, so that a number on a border may go the other way.
    allowed = torch.maximum(x.double().abs() / 16, step / 1024) * (1 + 1e-5)
    assert bool(((back - x.double()).abs() <= allowed).all())
    assert bool((back[0] == 0).all()) and (held.shape, held.dtype, held.numel) == ((7, width), dtype, 7 * width)
    largest = back.abs().amax(1)
    torch.testing.assert_close(largest[1:], x.double().abs().amax(1)[1:], rtol=1e-6, atol=0)
    assert held.nbytes == 7 * width + 4 * 7


def test_every_code_dequantises_to_itself() -> None:
    """Of the 256 bytes 254 are numbers; a row that holds 448 has the scale 1."""
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).view(FP8)
    numbers = codes.float()
    numbers = numbers[numbers.isfinite()].view(1, -1)
    assert numbers.shape == (1, 254)
    held = quantize_fp8(numbers)
    assert torch.equal(held.scales, torch.ones(1)) and torch.equal(held.codes.float(), numbers)
    assert torch.equal(dequantize_fp8(held), numbers)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    weight = torch.ones(9, 5)
    weight[7, 2] = value
    with pytest.raises(ModelError, match="layer 3: FP8 needs finite weights, met NaN or infinity in row 7 of 9"):
        quantize_fp8(weight, name="layer 3")
    # Activations are not looked at: what is not finite stays so, in its own row alone.
    rows = dequantize_fp8(fp8.rows_torch(weight))
    assert not rows[7].isfinite().any() and torch.equal(rows[:7], weight[:7]) and torch.equal(rows[8], weight[8])


def test_what_is_no_matrix_of_floats_is_refused() -> None:
    for wrong in (torch.ones(3), torch.ones(2, 2, 2), torch.ones(2, 2, dtype=torch.int32)):
        with pytest.raises(ModelError, match="w: FP8 takes a matrix of floats"):
            quantize_fp8(wrong, name="w")
    with pytest.raises(ModelError, match="needs codes"):
        FP8Tensor(torch.zeros(2, 3).to(FP8), torch.ones(3), torch.float32)


def test_joined_parts_are_their_own_values() -> None:
    parts = [
        quantize_fp8(random(rows, 40, dtype=torch.float32, device="cpu", seed=rows, grad=False)) for rows in (3, 5)
    ]
    joined = join_rows(parts)
    assert torch.equal(dequantize_fp8(joined), torch.cat([dequantize_fp8(part) for part in parts]))
    whole = quantize_fp8(
        torch.cat([random(n, 40, dtype=torch.float32, device="cpu", seed=n, grad=False) for n in (3, 5)])
    )
    assert cases.same(joined, whole)
    with pytest.raises(ModelError, match="one width and dtype"):
        join_rows([parts[0], quantize_fp8(torch.ones(3, 41))])


def test_quantising_by_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(37, 100, dtype=torch.bfloat16, device="cpu", seed=0, grad=False)
    whole = quantize_fp8(weight)
    monkeypatch.setattr("whippet.kernels.fp8_tensor.CHUNK", 450)
    assert cases.same(quantize_fp8(weight), whole)


@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 1), (64, 64), (100, 431), (132, 52)])
def test_transposed(num_rows: int, num_columns: int) -> None:
    cases.check_transposed(num_rows, num_columns, "cpu")


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)], ids=str)
@pytest.mark.parametrize(("tokens", "num_outputs", "num_inputs"), [(0, 16, 32), (1, 16, 16), (63, 100, 123)])
def test_products_are_those_of_the_rounded_numbers(
    tokens: int, num_outputs: int, num_inputs: int, dtype: torch.dtype, rtol: float
) -> None:
    if tokens:
        cases.check_products(tokens, num_outputs, num_inputs, dtype, "cpu", rtol)
        return
    weight = quantize_fp8(torch.ones(num_outputs, num_inputs))
    assert fp8.product(torch.ones(0, num_inputs), weight).shape == (0, num_outputs)
    assert fp8.input_gradient(torch.ones(0, num_outputs), weight).shape == (0, num_inputs)


def test_ones_are_made_once_for_a_size() -> None:
    device = torch.device("cpu")
    held = fp8._ones(device, 48)
    assert fp8._ones(device, 48) is held and torch.equal(held, torch.ones(48))
    assert fp8._ones(device, 49).shape == (49,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_gives_its_output_in_fp8_too(dtype: torch.dtype) -> None:
    cases.check_norm_rows(7, 100, dtype, "cpu")


def frozen_linear_of(dtype: torch.dtype) -> tuple[FP8Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """A weight; y, dx, dA, dB of one linear layer over it; and its inputs x, bias, A, B, g."""
    weight = quantize_fp8(random(48, 32, dtype=torch.float32, device="cpu", seed=0, grad=False))
    x = random(19, 32, dtype=dtype, device="cpu", seed=1)
    bias = random(48, dtype=torch.float32, device="cpu", seed=2, grad=False)
    a, b = (random(*shape, dtype=torch.float32, device="cpu", seed=3) for shape in ((4, 32), (48, 4)))
    grad = random(19, 48, dtype=dtype, device="cpu", seed=4, grad=False)
    y = frozen_linear(x, weight, bias, [LoraPart(a, b, slice(0, 48), 0.5)])
    y.backward(grad)
    assert x.grad is not None and a.grad is not None and b.grad is not None
    return weight, [y.detach(), x.grad, a.grad, b.grad], [x.detach(), bias, a.detach(), b.detach(), grad]


def test_a_frozen_linear_rounds_bf16_activations_and_nothing_of_the_adapter() -> None:
    weight, made, (x, bias, a, b, grad) = frozen_linear_of(torch.bfloat16)
    wide = [tensor.bfloat16().double() for tensor in (x, bias, a, b, grad)]
    x64, bias64, a64, b64, grad64 = wide
    u64, du64 = x64 @ a64.T, 0.5 * grad64 @ b64
    exact = [
        cases.exact_product(x, weight) + bias64 + 0.5 * u64 @ b64.T,
        cases.exact_gradient(grad, weight) + du64 @ a64,
        du64.T @ x64,
        0.5 * grad64.T @ u64,
    ]
    for actual, wanted in zip(made, exact, strict=True):
        # A few roundings to bf16, of 2⁻⁹ each; FP8 alone would be 2⁻⁵ and more off.
        assert (actual.double() - wanted).norm() <= 2**-7 * wanted.norm()
    unrounded = x64 @ dequantize_fp8(weight, torch.float64).T + bias64 + 0.5 * u64 @ b64.T
    assert (made[0].double() - unrounded).norm() > 2**-7 * unrounded.norm()


def test_a_frozen_linear_in_fp32_is_exact_over_the_weights_as_they_are_held() -> None:
    weight, made, (x, bias, a, b, grad) = frozen_linear_of(torch.float32)
    dense = dequantize_fp8(weight)
    torch.testing.assert_close(made[0], x @ dense.T + bias + 0.5 * (x @ a.T) @ b.T)
    torch.testing.assert_close(made[1], grad @ dense + 0.5 * (grad @ b) @ a)


@pytest.mark.parametrize(("heights", "width"), [((3,), 7), ((16,), 64), ((64, 32), 128), ((5,), 100)], ids=str)
@pytest.mark.parametrize("double", [False, True])
def test_nf4_becomes_the_fp8_that_its_numbers_give(heights: tuple[int, ...], width: int, double: bool) -> None:
    cases.check_nf4_codes(heights, width, "cpu", double=double)


def test_nf4_that_is_not_finite_is_refused_by_name() -> None:
    weight = quantize_nf4(torch.ones(9, 64), double=False)
    weight.absmax[7] = float("inf")
    with pytest.raises(ModelError, match="layer 3: FP8 needs finite weights, met NaN or infinity in row 7 of 9"):
        nf4_fp8.with_rows(weight, name="layer 3")
    with pytest.raises(ModelError, match=r"layer 3: FP8 takes a matrix, met NF4 of shape \[64\]"):
        nf4_fp8.with_rows(quantize_nf4(torch.ones(64)), name="layer 3")


def test_rows_that_were_cut_keep_their_scales() -> None:
    weight = nf4_fp8.with_rows(quantize_nf4(torch.randn(128, 64, generator=torch.Generator().manual_seed(0))))
    part = slice_rows(weight, 64, 128)
    assert torch.equal(nf4_fp8.codes_of(part).scales, weight.fp8_rows[1, 64:])
    assert nf4.join_rows([part, part]).fp8_rows is None  # other rows: somebody must look at them


def test_a_decoder_over_nf4_in_fp8_learns_as_over_the_fp8_of_its_numbers() -> None:
    """To the bit: the same codes, scales and order of operations. And in fp32 NF4 is what it was."""
    loss, gradients = decoder_and_gradients("nf4+fp8", torch.bfloat16)
    same_loss, same = decoder_and_gradients("fp8 of nf4", torch.bfloat16)
    assert loss == same_loss and torch.equal(gradients, same)
    exact_loss, exact = decoder_and_gradients("nf4", torch.float32)
    again_loss, again = decoder_and_gradients("nf4+fp8", torch.float32)
    assert exact_loss == again_loss and torch.equal(exact, again)
    off = (gradients - exact).norm() / exact.norm()
    assert 0.05 < off < 0.12, float(off)


def decoder_and_gradients(
    base: str, compute: torch.dtype, recompute: int = 0, device: str = "cpu", tile: int = 0
) -> tuple[float, torch.Tensor]:
    """Loss and gradients of all factors of a tiny decoder, over FP8 weights, the same ones dequantised, or NF4."""
    decoder = Decoder(TINY, compute_dtype=compute, device="cpu").requires_grad_(False)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in list(decoder.named_parameters()):
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.1, generator=draw)
    for name, projection in decoder.projections():
        weight = projection.dense
        if "nf4" in base:
            in_4bit = quantize_nf4(weight)
            projection.set_quantised(in_4bit)
            weight = nn.Parameter(dequantize_nf4(in_4bit, torch.float32), requires_grad=False)
        held = quantize_fp8(weight)
        if base.startswith("fp8"):
            projection.set_quantised(held)
        elif base == "nf4+fp8":
            projection.multiply_in_fp8(name=name)
        elif base == "nf4":
            continue
        else:
            projection.weight = nn.Parameter(dequantize_fp8(held), requires_grad=False)
    lora.attach(decoder, LoraOptions(r=8), seed=0)
    factors = lora.adapter_parameters(decoder)
    for factor in factors.values():
        nn.init.normal_(factor, std=0.05, generator=draw)
    decoder.to(device).train()
    decoder.recompute, decoder.tile = recompute, tile
    tokens = torch.randint(0, 97, (120,), generator=draw).to(device)
    positions, borders, longest = stream(60, 1, 59)
    hidden = decoder(tokens, positions.to(device), borders.to(device), longest)
    weights = torch.ones(120, device=device)
    loss = linear_cross_entropy(hidden, decoder.head_weight, tokens.roll(-1), weights, 64).loss_sum
    loss.backward()
    return float(loss.detach()), torch.cat([factor.grad.flatten().cpu() for factor in factors.values()])


def test_a_decoder_in_fp8_learns_as_over_the_same_weights_in_fp32() -> None:
    """Rounding to e4m3 is 2.6 % off in the root mean square, and so is a product of such numbers, whose errors are
    independent. A gradient meets about ten such products one after the other in two layers: 3 % · sqrt(10) is 9 %."""
    exact_loss, exact = decoder_and_gradients("fp32", torch.float32)
    loss, gradients = decoder_and_gradients("fp8", torch.bfloat16)
    bf16_loss, bf16 = decoder_and_gradients("bf16", torch.bfloat16)
    off, off_in_bf16 = ((other - exact).norm() / exact.norm() for other in (gradients, bf16))
    assert abs(loss - exact_loss) <= 0.01 * exact_loss and abs(bf16_loss - exact_loss) <= 0.01 * exact_loss
    assert 0.05 < off < 0.12, float(off)  # below: nothing was rounded
    assert off_in_bf16 < 0.03
    same_loss, same = decoder_and_gradients("fp8", torch.float32)
    assert abs(same_loss - exact_loss) <= 1e-5 * exact_loss and (same - exact).norm() <= 1e-5 * exact.norm()


def test_recomputing_changes_nothing() -> None:
    loss, gradients = decoder_and_gradients("fp8", torch.bfloat16)
    again, recomputed = decoder_and_gradients("fp8", torch.bfloat16, recompute=2)
    assert loss == again and torch.equal(gradients, recomputed)
