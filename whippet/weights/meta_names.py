"""Meta's original layout (https://github.com/meta-llama/llama-models) beside Hugging Face's: names, ranks, rows.

A rank of model parallelism has rows of the matrices that widen (wq, wk, wv, w1, w3, output), columns of those that
narrow (wo, w2), and all of each norm. Of the embedding it has columns up to Llama 2, rows from Llama 3 on; the shapes
tell. Where there are more ranks than key-value heads, neighbours hold the same head. Rotary pairs lie side by side,
where Hugging Face's layout has them half a head apart:

    row 2i + j of a head, j in {0, 1}, of wq and wk   is   row j · head_dim / 2 + i of q_proj and k_proj
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from whippet.errors import ModelError
from whippet.model.config import ModelConfig

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)", re.ASCII)
TOP = {"model.embed_tokens.weight": "tok_embeddings", "model.norm.weight": "norm", "lm_head.weight": "output"}
IN_LAYER = {
    "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_proj.weight": "attention.wq", "self_attn.k_proj.weight": "attention.wk",
    "self_attn.v_proj.weight": "attention.wv", "self_attn.o_proj.weight": "attention.wo",
    "mlp.gate_proj.weight": "feed_forward.w1", "mlp.up_proj.weight": "feed_forward.w3",
    "mlp.down_proj.weight": "feed_forward.w2",
}  # fmt: skip
BACK = {theirs: ours for ours, theirs in IN_LAYER.items()}
NARROWING = ("wo", "w2")


def from_interleaved(weight_NK: Tensor, head_dim: int) -> Tensor:
    """Rows of wq or wk in the order of q_proj and k_proj. A new tensor."""
    return weight_NK.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight_NK.shape)


def to_interleaved(weight_NK: Tensor, head_dim: int) -> Tensor:
    """The other way round."""
    return weight_NK.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight_NK.shape)


def meta_name(name: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` → ``layers.3.attention.wq.weight``."""
    if name in TOP:
        return f"{TOP[name]}.weight"
    match = LAYER.fullmatch(name)
    if not match or match[2] not in IN_LAYER:
        raise ModelError(f"{name} has no place in Meta's layout")
    return f"layers.{match[1]}.{IN_LAYER[match[2]]}.weight"


def hf_name(name: str) -> str:
    """The other way round; a name that Meta's layout has not stays as it is."""
    base = name.removesuffix(".weight")
    for ours, theirs in TOP.items():
        if base == theirs:
            return ours
    kind, _, rest = base.partition(".")
    index, _, module = rest.partition(".")
    return f"model.layers.{index}.{BACK[module]}" if kind == "layers" and module in BACK else name


def pieces_of(name: str, weight: Tensor, config: ModelConfig, ranks: int, *, by_rows: bool) -> Iterator[Tensor]:
    """What each of ``ranks`` holds of the tensor that Hugging Face calls ``name``; ``by_rows``: of the embedding."""
    theirs = meta_name(name)
    if theirs.endswith((".wq.weight", ".wk.weight")):
        weight = to_interleaved(weight, config.head_dim)
    if weight.ndim == 1:
        yield from (weight for _ in range(ranks))
        return
    embedding = theirs.startswith("tok_embeddings.")
    axis = int(not by_rows) if embedding else int(theirs.split(".")[-2] in NARROWING)
    shared = theirs.endswith((".wk.weight", ".wv.weight")) and ranks > config.num_kv_heads
    for piece in weight.chunk(config.num_kv_heads if shared else ranks, axis):
        yield from (piece for _ in range(ranks // config.num_kv_heads if shared else 1))
