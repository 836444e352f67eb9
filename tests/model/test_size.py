"""Operations are those that are done: pairs of tokens under windows, products that a norm behind them needs again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers_models import CONFIGS, TINY

from whippet.errors import UsageError
from whippet.model.size import (
    adapted,
    attention_flops_per_token,
    layer_matrix_parameters,
    lora_parameters,
    stacked_parameters,
    training_flops_per_token,
)
from whippet.options import TARGETS


@pytest.mark.parametrize("windows", [(), (0, 0), (100, 0), (100, 5000)], ids=str)
def test_attention_counts_the_pairs_of_each_layer(windows: tuple[int, ...]) -> None:
    length = 1000
    config = replace(TINY, windows=windows)
    pairs = sum(min(token + 1, window or length) for window in windows or (0, 0) for token in range(length))
    counted = attention_flops_per_token(config, length)
    # The sum over tokens is taken as an integral: half a pair a token.
    assert counted == pytest.approx(4 * config.num_heads * config.head_dim * pairs / length, rel=2e-3)


def test_a_norm_behind_the_last_product_has_it_done_again() -> None:
    plain, normed = TINY, replace(TINY, post_norms=True)
    for halves in (0, 2):
        less, more = (
            training_flops_per_token(config, 64, full=False, recompute=2, halves=halves) for config in (plain, normed)
        )
        assert more - less == pytest.approx(2 * 2 * TINY.hidden_size * TINY.intermediate_size)


def test_adapters_of_fused_matrices() -> None:
    """One A of r rows for all three, and for both: 4 factors of each kind a layer, not 7."""
    phi = CONFIGS["phi3"]
    assert adapted(phi, TARGETS) == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert adapted(phi, ("down_proj", "qkv_proj")) == ("qkv_proj", "down_proj")
    assert adapted(TINY, TARGETS) == TARGETS
    assert layer_matrix_parameters(phi) == layer_matrix_parameters(TINY)
    sides = (64 + 128) + (64 + 64) + (64 + 256) + (128 + 64)
    assert lora_parameters(phi, 4, TARGETS) == stacked_parameters(phi, 4, TARGETS) == 2 * 4 * sides
    for targets in (("q_proj",), ("gate_proj", "down_proj")):
        with pytest.raises(UsageError, match=r"this model has no (q|gate)_proj; it has qkv_proj"):
            adapted(phi, targets)
