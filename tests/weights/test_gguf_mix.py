"""Which tensor gets which type, against what llama.cpp's mixtures are for models of known depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers_models import TINY

from whippet.weights.gguf_mix import kind_of

DEEP = replace(TINY, num_layers=32)


def better(mix: str, part: str, kind: str, config: object = DEEP) -> list[int]:
    """Layers whose ``part`` is of ``kind``."""
    layers = range(config.num_layers)  # type: ignore[attr-defined]
    return [n for n in layers if kind_of(f"blk.{n}.{part}.weight", (512, 512), mix, config).name == kind]  # type: ignore[arg-type]


def test_layers_that_get_more_bits() -> None:
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for mix in ("q4_k_m", "q5_k_m"):
        assert better(mix, "attn_v", "q6_k") == better(mix, "ffn_down", "q6_k") == more
        assert better(mix, "attn_qkv", "q6_k") == more and better(mix, "attn_output", "q6_k") == []
    assert better("q4_k_s", "attn_v", "q5_k") == better("q4_k_s", "ffn_down", "q5_k") == [0, 1, 2, 3]
    few = replace(TINY, num_layers=16)
    assert better("q4_k_s", "attn_v", "q5_k", few) == [0, 1, 2, 3] and better("q4_k_s", "ffn_down", "q5_k", few) == [
        0,
        1,
    ]
    assert better("q4_k_m", "attn_v", "q4_k", replace(TINY, num_layers=80)) == []


@pytest.mark.parametrize("mix", ["q4_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k"])
def test_the_matrix_that_gives_the_logits_is_q6_k(mix: str) -> None:
    tied = replace(TINY, tie_embeddings=True)
    assert kind_of("output.weight", (97, 256), mix, TINY).name == "q6_k"
    assert kind_of("token_embd.weight", (97, 256), mix, tied).name == "q6_k"
    assert kind_of("token_embd.weight", (97, 256), mix, TINY).name == mix[:4]


def test_rows_of_no_whole_blocks_and_vectors() -> None:
    assert kind_of("blk.0.attn_q.weight", (64, 64), "q4_k_m", TINY).name == "q8_0"
    assert kind_of("blk.0.attn_q.weight", (64, 40), "q8_0", TINY).name == "f16"
    assert kind_of("blk.0.attn_norm.weight", (256,), "q8_0", TINY).name == "f32"
    assert kind_of("blk.0.attn_q.weight", (64, 40), "bf16", TINY).name == "bf16"
