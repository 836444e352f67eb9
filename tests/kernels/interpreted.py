"""The Triton kernels under Triton's interpreter; started by ``test_triton.py`` in a process of its own, since Triton
reads its switch when it is imported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import CONFIGS
from kernels import op_cases as cases
from tolerance import assert_accurate
from triton.runtime import interpreter

from whippet import lora
from whippet.kernels import frozen_linear, linear_cross_entropy, nf4, triton_jit
from whippet.kernels.gated_mlp import Activation
from whippet.kernels.nf4 import dequantize_nf4, join_rows, quantize_nf4
from whippet.model import park, projection
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions

# The interpreter cuts fp32 down to bf16 where a GPU rounds, so that bf16 is left to test_gpu.py.
activations = pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
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
@activations
def test_gated(shape: tuple[int, int], dtype: torch.dtype, strided: bool, activation: Activation) -> None:
    cases.check_gated(shape, dtype, "cpu", strided=strided, activation=activation)


@pytest.mark.parametrize(("sign", "shape"), [(1, (63, 100)), (-1, (45, 150))], ids=str)
def test_gelu_by_what_a_gpu_has(monkeypatch: pytest.MonkeyPatch, sign: int, shape: tuple[int, int]) -> None:
    """A GPU's own exponential is 2^x, off by up to 2^-22.5, of a rounded product, and its own division is off by two
    units in the last place; the interpreter's are exact. Here they are as on a GPU, up or down; rounded division is
    exact on both."""
    builder = interpreter.InterpreterBuilder

    def exp(x: Any) -> Any:
        return np.exp2((x.astype("float32") * np.float32(np.log2(np.e))).astype("float64"))

    def rough(exact: Any, error: float) -> Any:
        def op(*values: Any) -> Any:
            result = exact(*(value.astype("float64") for value in values))
            return (result * (1 + sign * error)).astype(values[0].dtype)

        return op

    monkeypatch.setattr(builder, "create_exp", lambda self, x: self.unary_op(x, rough(exp, 2**-22.5)))
    monkeypatch.setattr(builder, "create_fdiv", lambda self, x, y: self.binary_op(x, y, rough(np.divide, 2**-22)))
    cases.check_gated(shape, torch.float32, "cpu", activation="gelu_tanh")
    cases.check_gated_backward(*shape, 0, torch.float32, "cpu", "gelu_tanh")


@dtypes
@shapes
def test_offset_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    cases.check_offset_norm(shape, dtype, "cpu")


@dtypes
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1, 64), (5, 20)])
@pytest.mark.parametrize(("offset", "strided"), [(False, True), (True, False)])
def test_norm_and_rope(num_tokens: int, head_dim: int, offset: bool, strided: bool, dtype: torch.dtype) -> None:
    cases.check_norm_and_rope(num_tokens, head_dim, dtype, "cpu", offset=offset, strided=strided)


@dtypes
@pytest.mark.parametrize(("quantised", "activation"), [(False, "silu"), (True, "silu"), (True, "gelu_tanh")])
def test_gated_linear(dtype: torch.dtype, quantised: bool, activation: Activation) -> None:
    weight_NF = cases.random(100, 123, dtype=torch.float32, device="cpu", seed=5, grad=False)
    weight = quantize_nf4(weight_NF) if quantised else weight_NF
    cases.check_gated_linear(weight, dtype, "cpu", 31, activation=activation)


@dtypes
@pytest.mark.parametrize("ranks", [(1,), (16,), (16, 8), (60, 40)], ids=str)
def test_gated_linear_of_ranks(dtype: torch.dtype, ranks: tuple[int, ...]) -> None:
    weight_NF = cases.random(48, 150, dtype=torch.float32, device="cpu", seed=5, grad=False)
    cases.check_gated_linear(weight_NF, dtype, "cpu", 45, ranks)


@dtypes
@pytest.mark.parametrize("rank", [0, 1, 4, 16, 24, 100])
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (45, 150), (64, 64)])
def test_gated_backward(tokens: int, width: int, rank: int, dtype: torch.dtype) -> None:
    cases.check_gated_backward(tokens, width, rank, dtype, "cpu")


@dtypes
@pytest.mark.parametrize("rank", [0, 24])
def test_gated_backward_of_gelu(rank: int, dtype: torch.dtype) -> None:
    cases.check_gated_backward(45, 150, rank, dtype, "cpu", "gelu_tanh")


@dtypes
@pytest.mark.parametrize(("rows", "vocabulary", "chunk_rows"), [(1, 63, 8), (7, 100, 3), (5, 431, 5)])
@pytest.mark.parametrize(("block", "softcap"), [(64, None), (512, None), (64, 3.0)])
def test_linear_cross_entropy(
    rows: int,
    vocabulary: int,
    chunk_rows: int,
    block: int,
    softcap: float | None,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "BLOCK", block)
    cases.check_cross_entropy(rows, vocabulary, dtype, "cpu", chunk_rows, softcap)


def test_a_small_logit_keeps_its_last_bits_under_a_cap() -> None:
    """A tanh by exponentials would lose some."""
    logits = cases.random(7, 100, dtype=torch.float32, device="cpu", seed=0, grad=False) * 0.1
    labels, weights = torch.arange(7), torch.rand(7)
    by_torch = linear_cross_entropy.rows_torch(logits.clone(), labels, weights, torch.float32, 30.0)
    by_triton = linear_cross_entropy.rows_triton(logits.clone(), labels, weights, torch.float32, 30.0)
    exact = (30 * (logits.double() / 30).tanh()).log_softmax(-1).gather(1, labels.view(-1, 1)).view(-1)
    assert_accurate(by_triton[0], by_torch[0], exact)
    assert by_torch[2] is not None and by_triton[2] is not None
    torch.testing.assert_close(by_triton[2], by_torch[2], rtol=1e-5, atol=1e-8)


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
@pytest.mark.parametrize("halved", [False, True])
def test_frozen_linear_with_room(dtype: torch.dtype, halved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if halved:
        monkeypatch.setattr(frozen_linear, "HALVED", 1)
    weight_NK = cases.random(512, 64, dtype=torch.float32, device="cpu", seed=5, grad=False)
    wanted = {dtype: frozen_linear.room_wanted(quantize_nf4(weight_NK), 16, dtype) for dtype in cases.DTYPES}
    assert wanted == {torch.float32: 0, torch.bfloat16: 16, torch.float16: 16}
    cases.check_frozen_linear(quantize_nf4(weight_NK), dtype, "cpu", room=True)


@dtypes
@pytest.mark.parametrize("gap", [8, 24, 3])
def test_dequantise_into_rows_with_gaps(dtype: torch.dtype, gap: int) -> None:
    weight = quantize_nf4(cases.random(123, 440, dtype=torch.float32, device="cpu", seed=0, grad=False))
    out = torch.full((123, 440 + gap), float("nan"), dtype=dtype, device="cpu")
    dequantize_nf4(weight, dtype, out[:, :440])
    assert torch.equal(out[:, :440], dequantize_nf4(weight, dtype))
    assert out[:, 440:].isnan().all()


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


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_a_whole_decoder_computes_as_it_does_in_torch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels, room behind rows, one product for both, gradients in place; kept, recomputed and parked."""
    config = replace(CONFIGS[family], tie_embeddings=True)
    lengths, losses, grads = [7, 1, 12], [], []
    tokens = torch.randint(0, 97, (20,), generator=torch.Generator().manual_seed(1))
    borders = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    # fp32 does without room; but only in fp32 are two ways so near to each other.
    wanted = frozen_linear.room_wanted
    monkeypatch.setattr(projection, "room_wanted", lambda weight, ranks, _: wanted(weight, ranks, torch.float16))
    # recompute, park, halves, tile, entire
    ways = [(0, 0, 0, 0, 0), (2, 0, 0, 0, 0), (2, 2, 0, 0, 0), (2, 2, 2, 0, 1), (2, 2, 1, 7, 0)]
    ways = ways if family == "llama" else ways[3:]
    for usable, way in [(False, (0, 0, 0, 0, 0)), *((True, way) for way in ways)]:
        monkeypatch.setattr(triton_jit, "usable", lambda x, usable=usable: usable)
        decoder = Decoder(config, device="cpu").requires_grad_(False)
        draw = torch.Generator().manual_seed(2)
        for name, parameter in list(decoder.named_parameters()):
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.1, generator=draw)
        for _, matrix in decoder.projections():
            matrix.set_quantised(quantize_nf4(matrix.dense))
        lora.attach(decoder, LoraOptions(r=8), seed=0)
        factors = lora.adapter_parameters(decoder)
        for factor in factors.values():
            torch.nn.init.normal_(factor, std=0.1, generator=draw)
        for block in decoder.blocks():
            ranks = 8 * len(block.gate_up.parts)
            assert block.gate_up.room_for(torch.float32) == ranks * usable and not block.down.room_for(torch.float32)
        decoder.train()
        decoder.recompute, decoder.park, decoder.halves, decoder.tile, decoder.entire = way
        hidden = decoder(tokens, positions, borders, max(lengths))
        loss = linear_cross_entropy.linear_cross_entropy(
            hidden, decoder.head_weight, tokens, torch.ones(20), 9, config.logit_softcap
        ).loss_sum
        loss.backward()
        losses.append(loss.detach())
        grads.append(torch.cat([factor.grad.flatten() for factor in factors.values()]))
    for loss, grad in zip(losses[1:], grads[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=0)
        assert (grad - grads[0]).norm() <= (1e-6 if family == "llama" else 2e-6) * grads[0].norm()
