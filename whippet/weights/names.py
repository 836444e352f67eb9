"""One table of names: ours (fused) and Hugging Face's (separate).

``table(config)`` lists every weight of a model in the order in which the model uses them, each with the tensors of the
checkpoint whose rows, laid one under another, make it. Reading joins along it, writing splits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from whippet.model.config import ModelConfig
from whippet.model.size import matrices

HOMES = {
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp", "qkv_proj": "self_attn", "gate_up_proj": "mlp",
}  # fmt: skip
"""The module of a layer in which each projection of a checkpoint lies."""


@dataclass(frozen=True)
class Part:
    """A tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A weight of ours: its path in the decoder, and the tensors that it is made of."""

    ours: str
    parts: tuple[Part, ...]
    quantisable: bool = False
    """Whether it may be held in NF4 or FP8: matrices of the layers, as in bitsandbytes' default."""

    def split(self, fused: Tensor) -> list[tuple[str, Tensor]]:
        """The checkpoint's tensors: views of ``fused``."""
        rows = [part.shape[0] for part in self.parts]
        return list(zip((part.name for part in self.parts), fused.split(rows), strict=True))


def table(config: ModelConfig) -> tuple[Entry, ...]:
    """Every weight of the model. Tied models have no output matrix of their own."""
    hidden = config.hidden_size
    vocabulary = (config.vocab_size, hidden)
    entries = [Entry("embedding", (Part("model.embed_tokens.weight", vocabulary),))]
    for index in range(config.num_layers):
        entries += _layer(config, index)
    entries.append(Entry("norm", (Part("model.norm.weight", (hidden,)),)))
    if not config.tie_embeddings:
        entries.append(Entry("head", (Part("lm_head.weight", vocabulary),)))
    return tuple(entries)


def peft_module(index: int, part: str) -> str:
    """The path of a projection in the checkpoint's model, such as ``model.layers.3.self_attn.q_proj``."""
    return f"model.layers.{index}.{HOMES[part]}.{part}"


def _layer(config: ModelConfig, index: int) -> list[Entry]:
    ours, theirs = f"layers.{index}", f"model.layers.{index}"

    def matrix(name: str, bias: bool) -> list[Entry]:
        path, (rows, in_size) = f"{ours}.{name}", matrices(config)[name]
        weights = tuple(Part(f"{peft_module(index, part)}.weight", (n, in_size)) for part, n in rows.items())
        biases = tuple(Part(f"{peft_module(index, part)}.bias", (n,)) for part, n in rows.items())
        found = [Entry(f"{path}.weight", weights, quantisable=True)]
        return [*found, Entry(f"{path}.bias", biases)] if bias else found

    def norm(name: str, there: str, size: int) -> Entry:
        return Entry(f"{ours}.{name}", (Part(f"{theirs}.{there}.weight", (size,)),))

    hidden, head = config.hidden_size, config.head_dim
    post, qk = config.post_norms, config.qk_norm
    # Where four norms are, the checkpoint's second one is not that before the MLP.
    before_mlp = "pre_feedforward_layernorm" if post else "post_attention_layernorm"
    return [
        norm("attention_norm", "input_layernorm", hidden),
        *matrix("qkv", config.qkv_bias),
        *([norm("q_norm", "self_attn.q_norm", head), norm("k_norm", "self_attn.k_norm", head)] if qk else []),
        *matrix("o", config.o_bias),
        *([norm("post_attention_norm", "post_attention_layernorm", hidden)] if post else []),
        norm("mlp_norm", before_mlp, hidden),
        *matrix("gate_up", config.mlp_bias),
        *matrix("down", config.mlp_bias),
        *([norm("post_mlp_norm", "post_feedforward_layernorm", hidden)] if post else []),
    ]
