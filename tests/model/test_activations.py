"""What a layer is said to keep and to take is what tensors take."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_memory import traced
from helpers_models import TINY, random_decoder, stream

from whippet import lora
from whippet.model.activations import highest_bytes, kept_bytes
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions

TOKENS = 2048
CONFIG = replace(TINY, num_layers=4, intermediate_size=512)
TARGETS = LoraOptions().targets
KEPT = kept_bytes(CONFIG, 4, 2, TARGETS)
STREAM = 2 * 64 * 4 + 2 * 8 * 4
"""The final norm's input and output, and the rotary tables, a token."""


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    decoder = random_decoder(CONFIG).requires_grad_(False)
    lora.attach(decoder, LoraOptions(r=2), seed=0)
    return decoder.train()


def measured(decoder: Decoder, recompute: int, halves: int, park: int, tile: int = 0) -> tuple[float, float]:
    """Bytes a token that are there after the forward pass, and at most in the backward pass."""
    decoder.recompute, decoder.halves, decoder.park, decoder.tile = recompute, halves, park, tile
    ids = torch.arange(TOKENS) % 97

    def forward() -> Any:
        return decoder(ids, *stream(TOKENS))

    forward().sum().backward()  # gradients and places are there from now on
    hidden, held, _ = traced(forward)
    _, _, most = traced(lambda: hidden.sum().backward())
    return held / TOKENS, (held + most) / TOKENS


@pytest.mark.parametrize(
    ("recompute", "halves", "park", "bytes_kept"),
    [
        (0, 0, 0, 4 * KEPT.whole),
        (4, 0, 0, 4 * KEPT.x),
        (4, 4, 0, 4 * KEPT.half),
        (3, 2, 0, KEPT.x + 2 * KEPT.half + KEPT.whole),
        (4, 0, 4, 0),
        (3, 2, 2, KEPT.half + KEPT.whole),
    ],
)
def test_layers_keep_what_they_are_said_to(
    decoder: Decoder, recompute: int, halves: int, park: int, bytes_kept: int
) -> None:
    held, _ = measured(decoder, recompute, halves, park)
    # Of a parked half the scales of its norm stay, and what is too small to be worth a copy: here 52 bytes.
    assert bytes_kept - 64 <= held - STREAM <= bytes_kept + 52 * min(park, halves) + 64


@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"post_norms": True}, {"fused_names": True}], ids=str)
def test_other_layers_keep_what_they_are_said_to(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    decoder = random_decoder(config).requires_grad_(False)
    lora.attach(decoder, LoraOptions(r=2), seed=0)
    kept = kept_bytes(config, 4, 2, TARGETS)
    assert kept != KEPT
    for recompute, halves, wanted in ((0, 0, kept.whole), (4, 4, kept.half), (4, 0, kept.x)):
        held, _ = measured(decoder.train(), recompute, halves, 0)
        assert 4 * wanted - 64 <= held - STREAM <= 4 * wanted + 64


def test_what_is_parked_by_halves_leaves_the_device(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whippet.model.park.LEAST_BYTES", 0)
    held, _ = measured(decoder, 4, 4, 4)
    assert held == pytest.approx(STREAM, abs=40)


def test_what_is_parked_entire_leaves_the_device(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the end of the MLP as one op, as it is on a GPU: what else is there on a CPU holds gate_up."""
    monkeypatch.setattr("whippet.model.park.LEAST_BYTES", 0)
    monkeypatch.setattr("whippet.model.projection.triton_jit", SimpleNamespace(usable=lambda x: True))
    decoder.entire = 2
    try:
        held, _ = measured(decoder, 4, 4, 4)
        assert held == pytest.approx(STREAM, abs=60)
        assert KEPT.mlp > 4096
    finally:
        decoder.entire = 0


def test_tiles_bound_the_mlp_half(decoder: Decoder) -> None:
    """gate_up is never there for all tokens: the rest, all that is alive at once, is less than it alone."""
    for halves in (0, 4):
        _, whole = measured(decoder, 4, halves, 4)
        _, tiled = measured(decoder, 4, halves, 4, 128)
        gate_up = 4 * 2 * 512
        assert whole > 3 * gate_up
        assert tiled < gate_up


def test_whole_layers_take_no_more_than_halves(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By tiles, attention's backward pass is the highest moment of both: what attention adds is gone by then, and the
    gradient of the sum lies where that of the output was. A row of the stream would be 256 bytes."""
    monkeypatch.setattr("whippet.model.park.LEAST_BYTES", 0)
    _, wholes = measured(decoder, 4, 0, 4, 128)
    _, halves = measured(decoder, 4, 4, 4, 128)
    assert abs(wholes - halves) < 128


def test_a_layer_backward_holds_one_layer_at_a_time(decoder: Decoder) -> None:
    """Twice as many layers, parked, take no more (but for what is too small for a copy)."""
    deeper = random_decoder(replace(CONFIG, num_layers=8)).requires_grad_(False)
    lora.attach(deeper, LoraOptions(r=2), seed=0)
    deeper.train()
    for halves in (0, 1):
        _, few = measured(decoder, 4, 4 * halves, 4, 128)
        _, many = measured(deeper, 8, 8 * halves, 8, 128)
        assert many - few <= 4 * 52 * halves + 8


@pytest.mark.parametrize(("recompute", "halves"), [(0, 0), (4, 4), (4, 0)])
def test_the_highest_moment_of_the_mlp_half_is_the_counted_one(decoder: Decoder, recompute: int, halves: int) -> None:
    """On the CPU nothing is in place, and torch's kernels of the activation make fp32 copies of their own: the count is
    a lower bound here, and at most two inner widths below. Dense weights of fp32 are not made."""
    way = "whole" if recompute > halves else "half" if halves else "kept"
    _, most = measured(decoder, recompute, halves, 0)
    layer = highest_bytes(CONFIG, "fp32", 4, KEPT, way, TOKENS, in_place=False) / TOKENS
    below = {"kept": 3 * KEPT.whole, "half": 3 * KEPT.half, "whole": 3 * KEPT.x}[way]
    assert below + layer <= most <= below + layer + 4 * 512 * 4 + STREAM
