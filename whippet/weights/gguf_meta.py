"""A model's numbers as metadata of a GGUF file, and back.

Comes in: a ``ModelConfig`` that ``gguf_names.for_llama_cpp`` has passed, or an opened file. Goes out: pairs of key and
value and the small tensors of rotary factors that go with them; or the ``ModelConfig`` that the file describes, read
from nothing else. E: head_dim / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.families import MAX_LAYERS
from whippet.model.rope import inverse_frequencies
from whippet.weights.gguf_mix import MIXES
from whippet.weights.gguf_names import LOCAL_THETA, RULES, yarn_attention
from whippet.weights.gguf_read import GGUFFile

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
BETA_FAST, BETA_SLOW = 32.0, 1.0
FAMILIES = {"llama": "llama"} | {rules.arch: family for family, rules in RULES.items() if rules.arch != "llama"}
"""The family by which a file's architecture is read: several are written as llama."""


def model_pairs(config: ModelConfig, mix: str, name: str) -> dict[str, Any]:
    """The metadata of the model itself."""
    arch, scaling = RULES[config.family].arch, config.rope_scaling
    window = max(config.windows, default=0)
    told: dict[str, Any] = {
        "context_length": config.context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.sliding_window": window or None,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "vocab_size": config.vocab_size,
    }
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        told |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling is not None and scaling.kind == "yarn":
        told |= {
            "rope.scaling.original_context_length": scaling.original_context,
            "rope.scaling.yarn_beta_fast": scaling.high_freq_factor,
            "rope.scaling.yarn_beta_slow": scaling.low_freq_factor,
        }
    if scaling is not None and scaling.kind == "longrope":
        told |= {
            "rope.scaling.original_context_length": scaling.original_context,
            "rope.scaling.attn_factor": scaling.attention_factor,
        }
    general: dict[str, Any] = {"general.architecture": arch, "general.type": "model", "general.name": name}
    general |= {"general.file_type": MIXES[mix].file_type, "general.quantization_version": 2}
    return general | {f"{arch}.{key}": value for key, value in told.items() if value is not None}


def rotary_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """What each plain frequency is divided by, fp32 ``[E]``: of llama3 in one tensor, of longrope in two."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "longrope"):
        return {}
    if scaling.kind == "longrope":
        return {LONG: torch.tensor(scaling.long_factors), SHORT: torch.tensor(scaling.short_factors)}
    plain_E, _ = inverse_frequencies(replace(config, rope_scaling=None))
    return {FREQUENCIES: plain_E / inverse_frequencies(config)[0]}


def config_of(file: GGUFFile) -> ModelConfig:
    """The model that a file describes. ModelError for one that whippet does not compute."""
    arch = file.value("general.architecture", str)
    if arch not in FAMILIES:
        raise ModelError(f"{file.path}: unknown architecture {arch!r:.60}; known: {', '.join(sorted(FAMILIES))}")
    whole, real = _reader(file, arch, int), _reader(file, arch, float)
    family, rules = FAMILIES[arch], RULES[FAMILIES[arch]]
    heads, layers, hidden = whole("attention.head_count"), whole("block_count"), whole("embedding_length")
    window, context = whole("attention.sliding_window", 0), whole("context_length")
    if (
        not 0 < layers <= MAX_LAYERS
        or not heads
        or whole("attention.key_length", 0) % 2
        or "token_embd.weight" not in (file.tensors)
    ):
        raise ModelError(f"{file.path}: impossible layers, heads or embedding")
    gemma, pattern = family.startswith("gemma"), rules.pattern
    head_dim = whole("attention.key_length", hidden // heads)
    size = hidden // heads if layers == rules.large else head_dim
    config = ModelConfig(
        family=family,
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=whole("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        context=context,
        norm_eps=real("attention.layer_norm_rms_epsilon"),
        rope_theta=real("rope.freq_base", 10000.0),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        tie_embeddings="output.weight" not in file.tensors,
        windows=tuple(window * ((layer + 1) % pattern > 0) for layer in range(layers)) if window and pattern else (),
        local_rope_theta=LOCAL_THETA if family == "gemma3_text" else None,
        qk_norm=family in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        unit_offset=gemma,
        scale_embeddings=gemma,
        activation="gelu_tanh" if gemma else "silu",
        query_pre_attn_scalar=size if gemma else None,
        attention_softcap=real("attn_logit_softcapping", None),
        logit_softcap=real("final_logit_softcapping", None),
        fused_names=family == "phi3",
    )
    return replace(config, rope_scaling=_scaling(file, config, whole, real))


def _scaling(
    file: GGUFFile, config: ModelConfig, whole: Callable[..., Any], real: Callable[..., Any]
) -> RopeScaling | None:
    """Factors in a tensor are LongRoPE's, or one set of them for documents of any length."""
    original = whole("rope.scaling.original_context_length", config.context)
    factors = {name: file.tensor(name) for name in (FREQUENCIES, SHORT, LONG) if name in file.tensors}
    for name, found in factors.items():
        if found.shape != (config.head_dim // 2,) or not (found.isfinite() & (found > 0)).all():
            raise ModelError(f"{file.path}: {name} does not hold a positive factor for each pair of channels")
    if FREQUENCIES in factors:
        same = tuple(factors[FREQUENCIES].tolist())
        return RopeScaling("longrope", original_context=original, short_factors=same, long_factors=same)
    if factors:
        if len(factors) != 2:
            raise ModelError(f"{file.path}: it has {next(iter(factors))} and not the other set of factors")
        return RopeScaling(
            "longrope",
            original_context=original,
            short_factors=tuple(factors[SHORT].tolist()),
            long_factors=tuple(factors[LONG].tolist()),
            attention_factor=real("rope.scaling.attn_factor", 1.0),
        )
    arch = RULES[config.family].arch
    kind = file.value(f"{arch}.rope.scaling.type", str, "none")
    if kind == "none":
        return None
    factor = real("rope.scaling.factor")
    if kind == "linear" and factor > 0:
        return RopeScaling("linear", factor)
    if kind != "yarn" or factor <= 0:
        raise ModelError(f"{file.path}: rope scaling {kind!r:.60} by {factor:g} is not what whippet computes")
    return RopeScaling(
        "yarn",
        factor,
        low_freq_factor=real("rope.scaling.yarn_beta_slow", BETA_SLOW),
        high_freq_factor=real("rope.scaling.yarn_beta_fast", BETA_FAST),
        original_context=original,
        attention_factor=yarn_attention(factor),
    )


def _reader(file: GGUFFile, arch: str, kind: type) -> Callable[..., Any]:
    def read(key: str, default: Any = ...) -> Any:
        value = file.value(f"{arch}.{key}", kind, default)
        if isinstance(value, int) and not 0 <= value < 2**31:
            raise ModelError(f"{file.path}: {arch}.{key} is {value}, which no model has")
        if isinstance(value, float) and not 0 <= value < float("inf"):
            raise ModelError(f"{file.path}: {arch}.{key} is {value}, which no model has")
        return value

    return read
