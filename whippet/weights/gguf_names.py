"""Names and arrangement of weights in GGUF, family by family, as llama.cpp wants them.

Comes in: a ``ModelConfig`` and tensors in Hugging Face's names. Goes out: ``Rules`` for the family, each tensor's name
there, and its rows in the order that llama.cpp's rotation expects; and the way back. ``docs/design/gguf.md`` has the
table. D: head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from whippet.errors import ModelError
from whippet.model.config import ModelConfig


@dataclass(frozen=True)
class Rules:
    """How llama.cpp holds a family."""

    arch: str
    permuted: bool = False
    """Rotary pairs lie side by side, not half a head apart: rows of q and k change places."""
    pattern: int = 0
    """Every so many-th layer attends to all tokens, the others to a window; 0: windows are not computed."""
    biases: tuple[str, ...] = ()
    """Which of ``qkv``, ``o`` and ``mlp`` may have one."""
    scalings: tuple[str, ...] = ("linear", "yarn")
    """Kinds of ``RopeScaling`` that are computed."""
    large: int = 0
    """The number of layers of the one size whose scores are scaled by ``hidden / heads``, not by ``head_dim``."""


LLAMA = Rules("llama", permuted=True, biases=("qkv", "o", "mlp"), scalings=("linear", "llama3", "yarn"))
RULES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "granite": LLAMA,  # as whippet computes it, its multipliers change nothing
    "qwen2": Rules("qwen2", biases=("qkv",)),
    "qwen3": Rules("qwen3"),
    "gemma2": Rules("gemma2", pattern=2, scalings=(), large=46),
    "gemma3_text": Rules("gemma3", pattern=6, scalings=("linear",), large=62),
    "phi3": Rules("phi3", scalings=("longrope",)),
}
LOCAL_THETA = 10000.0
"""What llama.cpp turns the layers with a window of gemma3 by."""
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def gguf_name(name: str, config: ModelConfig) -> str:
    """``blk.3.attn_q.weight`` for ``model.layers.3.self_attn.q_proj.weight``."""
    path, _, last = name.rpartition(".")
    if path in TOP:
        return f"{TOP[path]}.{last}"
    _, _, index, inner = path.split(".", 3)
    # Where four norms are, this one lies behind attention; else before the MLP.
    found = "post_attention_norm" if config.post_norms and inner == "post_attention_layernorm" else LAYER[inner]
    return f"blk.{index}.{found}.{last}"


def arranged(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """The tensor as llama.cpp computes with it: rows of q and k permuted, 1 added to norms that scale by 1 + w."""
    if heads := _permuted_heads(name, config):
        halves = tensor.view(heads, 2, config.head_dim // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)
    return tensor + 1 if config.unit_offset and name.endswith("norm.weight") else tensor


def restored(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """The inverse of ``arranged``."""
    if heads := _permuted_heads(name, config):
        pairs = tensor.view(heads, config.head_dim // 2, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)
    return tensor - 1 if config.unit_offset and name.endswith("norm.weight") else tensor


def _permuted_heads(name: str, config: ModelConfig) -> int:
    if not RULES[config.family].permuted:
        return 0
    return config.num_heads if ".q_proj." in name else config.num_kv_heads if ".k_proj." in name else 0


def for_llama_cpp(config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model as llama.cpp computes it, and what a reader should know about that. ModelError where it computes
    something else: what a file cannot tell is not left out in silence."""
    rules = RULES.get(config.family)
    if rules is None:
        raise ModelError(f"gguf: llama.cpp has no architecture for {config.family} that whippet knows")
    _check(config, rules)
    notes = []
    windows = [window for window in config.windows if window]
    if rules.pattern:
        wanted = tuple(0 if (layer + 1) % rules.pattern == 0 else 1 for layer in range(config.num_layers))
        if len(set(windows)) > 1 or tuple(min(window, 1) for window in config.windows) != wanted:
            raise ModelError(
                f"gguf: windows are {config.windows!s:.60}; llama.cpp has one width for {config.family}, and all but "
                f"every {rules.pattern}. layer have it"
            )
    elif windows:
        shortest = min(windows)
        if shortest < config.context:
            notes.append(f"llama.cpp computes no windows for {config.family}: the context ends at {shortest} tokens")
        config = replace(config, windows=(), context=min(config.context, shortest))
    if config.rope_scaling is not None and config.rope_scaling.kind == "longrope":
        notes.append(
            "llama.cpp turns every document by the long factors if it is started with a context above "
            f"{config.rope_scaling.original_context}, else by the short ones"
        )
    return config, tuple(notes)


def yarn_attention(factor: float) -> float:
    """What llama.cpp multiplies cosines and sines by under YaRN."""
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0


def _check(config: ModelConfig, rules: Rules) -> None:
    family, scaling = config.family, config.rope_scaling
    for kind, has in (("qkv", config.qkv_bias), ("o", config.o_bias), ("mlp", config.mlp_bias)):
        if has and kind not in rules.biases:
            raise ModelError(f"gguf: this {family} has biases in {kind}, which llama.cpp does not compute")
    if scaling is not None and scaling.kind not in rules.scalings:
        raise ModelError(f"gguf: rope scaling {scaling.kind} of a {family} is not what llama.cpp computes")
    if scaling is not None and scaling.kind == "yarn":
        if not scaling.truncate:
            raise ModelError("gguf: yarn with truncate false is not what llama.cpp computes")
        if not math.isclose(scaling.attention_factor, yarn_attention(scaling.factor), rel_tol=1e-6):
            raise ModelError(f"gguf: yarn with attention_factor {scaling.attention_factor:g} is not in the format")
    if family.startswith("gemma"):
        size = config.hidden_size // config.num_heads if config.num_layers == rules.large else config.head_dim
        if (config.query_pre_attn_scalar or config.head_dim) != size:
            raise ModelError(f"gguf: query_pre_attn_scalar is {config.query_pre_attn_scalar}; llama.cpp takes {size}")
        if not config.tie_embeddings:
            raise ModelError(f"gguf: this {family} has an output matrix of its own, which llama.cpp does not read")
    if family == "gemma3_text" and (config.logit_softcap or config.local_rope_theta not in (None, LOCAL_THETA)):
        raise ModelError(f"gguf: llama.cpp computes gemma3 with no softcap and a local theta of {LOCAL_THETA:g} only")
