"""Attaching: what is drawn, what is refused, what a fresh adapter changes (nothing)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import TINY, logits, random_decoder

from whippet import lora
from whippet.errors import UsageError
from whippet.kernels.nf4 import dequantize_nf4, quantize_nf4
from whippet.options import TARGETS, LoraOptions

IDS = torch.arange(30)


def test_a_fresh_adapter_changes_nothing() -> None:
    decoder = random_decoder()
    before = logits(decoder, IDS)
    lora.attach(decoder, LoraOptions(), seed=0)
    assert torch.equal(before, logits(decoder, IDS))


def test_factors_follow_the_seed() -> None:
    def factors(seed: int) -> dict[str, torch.Tensor]:
        decoder = random_decoder()
        lora.attach(decoder, LoraOptions(r=6), seed=seed)
        return {name: parameter.detach() for name, parameter in lora.adapter_parameters(decoder).items()}

    first, same, other = factors(1), factors(1), factors(2)
    assert len(first) == 2 * len(TARGETS) * TINY.num_layers
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == name.endswith(".b") for name in first)
    assert all(tensor.dtype == torch.float32 for tensor in first.values())
    assert first["layers.1.down_proj.a"].shape == (6, 128)
    assert first["layers.1.down_proj.b"].shape == (64, 6)


def test_factors_are_drawn_as_peft_draws_them() -> None:
    """Uniform within ±1/sqrt(inputs): the same law, known by its ends and its spread."""
    decoder = random_decoder()
    lora.attach(decoder, LoraOptions(r=64), seed=0)
    for name, parameter in lora.adapter_parameters(decoder).items():
        if name.endswith(".a"):
            theirs = torch.nn.init.kaiming_uniform_(torch.empty_like(parameter), a=5**0.5)
            assert parameter.abs().max() <= parameter.shape[1] ** -0.5
            assert torch.isclose(parameter.std(), theirs.std(), rtol=0.05)


@pytest.mark.parametrize("quantise", [False, True])
def test_merged_weight_is_base_plus_product(quantise: bool) -> None:
    decoder = random_decoder(replace(TINY, num_layers=1))
    options = LoraOptions(r=4, alpha=12, rslora=True, targets=("k_proj", "up_proj"))
    block = next(decoder.blocks())
    if quantise:
        block.qkv.set_quantised(quantize_nf4(block.qkv.dense.detach()))
    lora.attach(decoder, options, seed=0)
    (name, adapter), *rest = block.qkv.adapter_items()
    assert (name, rest) == ("k_proj", [])
    torch.nn.init.normal_(adapter.b)
    base = block.qkv.weight_fp32()
    wanted = base.clone()
    wanted[64:96] += 12 / 4**0.5 * adapter.b @ adapter.a
    assert torch.allclose(lora.merged_weight(block.qkv), wanted, atol=1e-6)
    assert torch.equal(block.qkv.weight_fp32(), base)
    if quantise:
        assert block.qkv.nf4 is not None
        assert torch.equal(base, dequantize_nf4(block.qkv.nf4, torch.float32))


def test_dropout_acts_in_training_only() -> None:
    decoder = random_decoder()
    lora.attach(decoder, LoraOptions(r=4, dropout=0.5), seed=0)
    for parameter in lora.adapter_parameters(decoder).values():
        torch.nn.init.normal_(parameter, std=0.3)
    quiet = logits(decoder.eval(), IDS)
    assert torch.equal(quiet, logits(decoder, IDS))
    assert not torch.equal(quiet, logits(decoder.train(), IDS))


def test_each_part_drops_its_own_inputs() -> None:
    """As in peft: with B of q and of k alike, a mask that they shared would make their outputs alike."""
    decoder = random_decoder(replace(TINY, num_heads=2, num_kv_heads=2))
    lora.attach(decoder, LoraOptions(r=4, dropout=0.5, targets=("q_proj", "k_proj")), seed=0)
    qkv = next(decoder.blocks()).qkv.train()
    (_, q), (_, k) = qkv.adapter_items()
    with torch.no_grad():
        q.b.fill_(1.0)
        k.b.fill_(1.0)
        k.a.copy_(q.a)
        qkv.dense.zero_()
        out = qkv(torch.randn(5, 64))
    assert not torch.equal(out[:, :32], out[:, 32:64])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LoraOptions(r=0), "lora.r is 0"),
        (LoraOptions(dropout=1.0), "lora.dropout"),
        (LoraOptions(alpha=float("nan")), "lora.alpha"),
        (LoraOptions(targets=()), "lora.targets is empty"),
        (LoraOptions(targets=("q_prj",)), "did you mean 'q_proj'"),
    ],
)
def test_senseless_options_are_refused(options: LoraOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        lora.attach(random_decoder(), options, seed=0)
