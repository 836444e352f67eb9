"""Which tensor of a GGUF file gets which type.

Comes in: the type that a person asks for. Goes out: the kind of each tensor. The mixtures are llama.cpp's
(``llama_tensor_get_type``): some tensors are worth more bits, above all the output matrix, values, and the last matrix
of the MLP in the first, the last and every third layer between.
"""

from __future__ import annotations

from dataclasses import dataclass

from whippet.model.config import ModelConfig
from whippet.weights.gguf_blocks import KINDS, Kind


@dataclass(frozen=True)
class Mix:
    """A type of file."""

    usual: str
    """The kind of most matrices."""
    file_type: int
    """``general.file_type``."""
    better: str | None = None
    """The kind of the matrices that are worth more."""


MIXES = {
    "f32": Mix("f32", 0),
    "f16": Mix("f16", 1),
    "bf16": Mix("bf16", 32),
    "q8_0": Mix("q8_0", 7),
    "q4_0": Mix("q4_0", 2),
    "q4_k_s": Mix("q4_k", 14, "q5_k"),
    "q4_k_m": Mix("q4_k", 15, "q6_k"),
    "q5_k_m": Mix("q5_k", 17, "q6_k"),
    "q6_k": Mix("q6_k", 18),
}
WHOLE = ("f32", "f16", "bf16", "q8_0")
"""Types that treat every matrix alike."""


def kind_of(name: str, shape: tuple[int, ...], mix_name: str, config: ModelConfig) -> Kind:
    """The kind of the tensor ``name`` (GGUF's). Vectors stay fp32. A matrix whose rows are no whole blocks of its kind
    gets q8_0, or f16 where they are no blocks of that either."""
    mix = MIXES[mix_name]
    if len(shape) == 1:
        return KINDS["f32"]
    kind = KINDS[mix.usual if mix_name in WHOLE else _chosen(name, mix_name, mix, config)]
    for found in (kind, KINDS["q8_0"]):
        if shape[-1] % found.weights == 0:
            return found
    return KINDS["f16"]


def _chosen(name: str, mix_name: str, mix: Mix, config: ModelConfig) -> str:
    output = "token_embd" if config.tie_embeddings else "output"
    if name == f"{output}.weight":
        return "q6_k"
    if not name.startswith("blk.") or mix.better is None:
        return mix.usual
    _, index, part, _ = name.split(".")
    layer, layers = int(index), config.num_layers
    values = part in ("attn_v", "attn_qkv")
    if not values and part != "ffn_down":
        return mix.usual
    few = 4 if values else layers // 8
    worth = layer < few if mix_name.endswith("_s") else _gets_more(layer, layers)
    chosen = mix.better if worth else mix.usual
    # In models of 80 layers eight heads of queries share one of values, which costs little.
    shared = values and layers == 80 and config.num_heads != config.num_kv_heads
    return "q5_k" if shared and chosen == "q4_k" else chosen


def _gets_more(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
