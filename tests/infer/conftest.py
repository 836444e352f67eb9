"""A tiny random decoder, in numbers small enough for oracles that recompute everything."""

from __future__ import annotations

import pytest
import torch

from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return make_decoder()


def make_decoder(*, vocab_size: int = 61, context: int = 96, seed: int = 0) -> Decoder:
    config = ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context=context,
    )
    decoder = Decoder(config, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            # Large enough that greedy replies wander instead of repeating one token.
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.35, generator=generator)
    return decoder.requires_grad_(False).eval()
