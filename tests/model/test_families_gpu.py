"""Each family on a GPU in bf16: hidden states and an adapter's gradients are those of fp32 on the CPU, as far as bf16
reaches. Heads have the sizes that the real models have, by which attention's kernels are chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import CONFIGS, random_decoder

from whippet import lora
from whippet.kernels.int8 import quantize_int8
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEADS = {"gemma2": 256, "gemma3": 256, "phi3": 96}
LENGTHS = (40, 7, 129, 1, 300)


def outcome(decoder: Decoder, device: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states of a packed stream, and the gradients of the adapter's factors."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, decoder.config.vocab_size, (sum(LENGTHS),), generator=generator).to(device)
    places = torch.cat([torch.arange(length) for length in LENGTHS]).to(device)
    borders = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(device)
    hidden = decoder(ids, places, borders, max(LENGTHS))
    upstream = torch.randn(hidden.shape, generator=generator).to(device, hidden.dtype)
    trained = [p for p in decoder.parameters() if p.requires_grad]
    grads = torch.autograd.grad(hidden, trained, upstream)
    return hidden.detach().double().cpu(), [grad.double().cpu() for grad in grads]


@pytest.mark.parametrize("base", ["bf16", "int8"])
@pytest.mark.parametrize("family", CONFIGS)
def test_family(family: str, base: str) -> None:
    head_dim = HEADS.get(family, 128)
    config = CONFIGS[family]
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        factors = {"short_factors": (1.1,) * (head_dim // 2), "long_factors": (2.5,) * (head_dim // 2)}
        config = replace(config, rope_scaling=replace(config.rope_scaling, **factors))
    config = replace(config, head_dim=head_dim, hidden_size=128)
    decoder = random_decoder(config).bfloat16().float().requires_grad_(False)
    if base == "int8":
        for _, projection in decoder.projections():
            projection.set_quantised(quantize_int8(projection.weight.detach().bfloat16()))
    lora.attach(decoder, LoraOptions(r=4), 0)
    with torch.no_grad():
        for _, projection in decoder.projections():
            for _, adapter in projection.adapter_items():
                adapter.b.normal_(std=0.05)
    exact = outcome(decoder, "cpu")
    decoder.compute_dtype = torch.bfloat16
    plain, ours = outcome(decoder, "cpu"), outcome(decoder.cuda(), "cuda")
    for one, same, wanted in zip((ours[0], *ours[1]), (plain[0], *plain[1]), (exact[0], *exact[1]), strict=True):
        error, allowed = (one - wanted).norm() / wanted.norm(), (same - wanted).norm() / wanted.norm()
        assert error <= 2 * allowed, (float(error), float(allowed))
