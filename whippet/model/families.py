"""One function a family: the dictionary of a ``config.json`` in, a ``ModelConfig`` out, and back again.

Both spellings of transformers are read (``rope_keys.py``). The v4 one is written, since both versions read it. An
absent key means what the family's config class of transformers says. What would change the computation in a way that
the decoder does not know is a ModelError; keys that do not are passed over. ``docs/design/families.md`` tells the
families apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from whippet.errors import ModelError
from whippet.model.config import ModelConfig
from whippet.model.config_keys import Keys
from whippet.model.rope_keys import KINDS, read_rope, read_rope_of_kinds, rope_to_hf

REMOTE_CODE = ("auto_map", "custom_pipelines", "_attn_implementation_internal", "model_file", "trust_remote_code")
"""Keys by which a config asks a loader to run code. A checkpoint that has one is refused."""
PASSED_OVER = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
"""But for this ``auto_map``, which every published Phi-3 has: it names what transformers holds itself by now."""

MAX_LAYERS = 4096
"""More than any model has, and few enough that a forged number costs no time."""
LAYER_TYPES = ("full_attention", "sliding_attention")

Rope = Callable[[Keys, int, int], dict[str, Any]]
"""From a config's keys, its context and head_dim to the fields about rotary embeddings."""


def config_from_hf(config: dict[str, Any], *, where: str) -> ModelConfig:
    """Read the content of a ``config.json``; ``where`` names it in errors. Raises ModelError."""
    name = config.get("model_type")
    for key in REMOTE_CODE:
        if config.get(key) and not (name == "phi3" and key == "auto_map" and config[key] == PASSED_OVER):
            raise ModelError(f"{where}: '{key}' asks for code from the checkpoint to be run; whippet runs none")
    architectures = config.get("architectures") or []
    if not isinstance(name, str) or name not in FAMILIES:
        shown = name if isinstance(name, str) else architectures
        raise ModelError(f"{where}: unknown architecture {shown!r}; known: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    if not isinstance(architectures, list) or any(other != family.architecture for other in architectures):
        raise ModelError(
            f"{where}: architectures is {architectures!r}; of the family {name} only {family.architecture} is known"
        )
    return family.read(Keys(config, where))


def config_to_hf(config: ModelConfig, *, dtype: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint in ``dtype`` (``"bfloat16"``), in v4 spelling, with ``extra`` keys added."""
    family = FAMILIES[config.family]
    written: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu" if config.activation == "silu" else "gelu_pytorch_tanh",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_to_hf(config),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
    }
    own = _own_keys(config)
    return written | {key: own[key] for key in family.keys} | (extra or {})


def _own_keys(config: ModelConfig) -> dict[str, Any]:
    """Keys that some families have."""
    windows = config.windows or (0,) * config.num_layers
    window = max(windows, default=0) or None
    scaling = config.rope_scaling
    return {
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "max_window_layers": next((layer for layer, one in enumerate(windows) if one), config.num_layers),
        "layer_types": [LAYER_TYPES[one > 0] for one in windows],
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config.query_pre_attn_scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "rope_local_base_freq": config.local_rope_theta,
        "original_max_position_embeddings": config.context if scaling is None else scaling.original_context,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": config.attention_scale,
    }


def _llama(keys: Keys) -> ModelConfig:
    """Llama 2 to 3.3, and what shares their shape: SmolLM2, TinyLlama, Yi, DeepSeek-R1's distills into Llama."""
    bias = keys.flag("attention_bias", False)
    return _decoder(
        keys, context=2048, kv_heads=True, qkv_bias=bias, o_bias=bias, mlp_bias=keys.flag("mlp_bias", False)
    )


def _mistral(keys: Keys) -> ModelConfig:
    """A window in every layer (v0.1), or in none."""
    if keys.config.get("layer_types"):
        raise ModelError(f"{keys.where}: layer_types in a mistral config is not what transformers computes")
    layers = keys.integer("num_hidden_layers", most=MAX_LAYERS)
    window = _window(keys, 4096)
    return _decoder(keys, context=131072, windows=() if window is None else (window,) * layers)


def _qwen2(keys: Keys) -> ModelConfig:
    return _decoder(keys, context=32768, qkv_bias=True, windows=_qwen_windows(keys))


def _qwen3(keys: Keys) -> ModelConfig:
    bias = keys.flag("attention_bias", False)
    return _decoder(
        keys, context=32768, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm=True, windows=_qwen_windows(keys)
    )


def _gemma2(keys: Keys) -> ModelConfig:
    return _gemma(
        keys,
        context=8192,
        windows=_windows(keys, _window(keys, 4096), lambda layer: layer % 2 == 0),
        attention_softcap=keys.optional("attn_logit_softcapping", 50.0),
        logit_softcap=keys.optional("final_logit_softcapping", 30.0),
    )


def _gemma3(keys: Keys) -> ModelConfig:
    """The text model alone, as published for 270M and 1B."""
    keys.must_be("attn_logit_softcapping", None)  # transformers has the key, and does not compute it
    pattern = keys.integer("sliding_window_pattern", 6)
    return _gemma(
        keys,
        context=131072,
        rope=_rope_of_kinds,
        windows=_windows(keys, _window(keys, 4096), lambda layer: (layer + 1) % pattern > 0),
        logit_softcap=keys.optional("final_logit_softcapping", None),
        qk_norm=True,
    )


def _gemma(keys: Keys, **fields: Any) -> ModelConfig:
    keys.must_be("use_bidirectional_attention", False)
    bias = keys.flag("attention_bias", False)
    return _decoder(
        keys,
        head_dim=256,
        tied=True,
        activation="gelu_tanh",
        qkv_bias=bias,
        o_bias=bias,
        post_norms=True,
        unit_offset=True,
        scale_embeddings=True,
        query_pre_attn_scalar=keys.integer("query_pre_attn_scalar", 256),
        **fields,
    )


def _phi3(keys: Keys) -> ModelConfig:
    """Phi-3 and 3.5: fused matrices, LongRoPE."""
    for key in ("resid_pdrop", "embd_pdrop"):
        keys.must_be(key, 0.0)
    keys.must_be("attention_bias", False)
    layers = keys.integer("num_hidden_layers", most=MAX_LAYERS)
    window = _window(keys, None)
    windows = () if window is None else (window,) * layers
    return _decoder(keys, context=4096, kv_heads=True, eps=1e-5, rope=_rope_of_phi, fused_names=True, windows=windows)


def _granite(keys: Keys) -> ModelConfig:
    """As Llama, where its four multipliers change nothing."""
    for key in ("embedding_multiplier", "logits_scaling", "residual_multiplier"):
        keys.must_be(key, 1.0)
    config = _llama(keys)
    factor = keys.real("attention_multiplier", 1.0)
    if factor != config.head_dim**-0.5:
        raise ModelError(
            f"{keys.where}: attention_multiplier is {factor}; whippet computes only head_dim**-0.5, "
            f"here {config.head_dim**-0.5}"
        )
    return config


def _decoder(
    keys: Keys,
    *,
    context: int,
    head_dim: int | None = None,
    kv_heads: bool = False,
    eps: float = 1e-6,
    tied: bool = False,
    rope: Rope | None = None,
    **fields: Any,
) -> ModelConfig:
    """The keys that the families share. ``context``, ``head_dim`` (None: of the heads' width), ``eps`` and ``tied`` are
    what an absent key means; ``kv_heads``: whether there may be none of that. ``fields``: the family's own."""
    read = _plain_rope if rope is None else rope
    if fields.get("activation") == "gelu_tanh":
        keys.must_be("hidden_activation", "gelu_pytorch_tanh")
    else:
        keys.must_be("hidden_act", "silu", "swish")
    keys.must_be("attention_dropout", 0.0)
    hidden, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if "num_key_value_heads" not in keys.config and not kv_heads:
        raise ModelError(f"{keys.where}: the key num_key_value_heads is missing")
    shared = keys.integer("num_key_value_heads", heads)
    size = keys.integer("head_dim", head_dim or max(1, hidden // heads))
    if keys.config.get("head_dim") is None and head_dim is None and hidden % heads:
        raise ModelError(f"{keys.where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    if heads % shared:
        raise ModelError(f"{keys.where}: num_attention_heads {heads} is no multiple of num_key_value_heads {shared}")
    if size % 2:
        raise ModelError(f"{keys.where}: head_dim is {size}; rotary embeddings need an even one")
    longest = keys.integer("max_position_embeddings", context)
    return ModelConfig(
        family=keys.config["model_type"],
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size"),
        num_layers=keys.integer("num_hidden_layers", most=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=shared,
        head_dim=size,
        norm_eps=keys.real("rms_norm_eps", eps),
        tie_embeddings=keys.flag("tie_word_embeddings", tied),
        **{"context": longest, **read(keys, longest, size)},
        **fields,
    )


def _plain_rope(keys: Keys, context: int, head_dim: int) -> dict[str, Any]:
    theta, scaling = read_rope(keys, context, head_dim)
    read: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling}
    if scaling is not None and scaling.kind == "yarn":
        # Qwen's own instructions switch it on and leave max_position_embeddings as it is.
        read["context"] = max(context, int(scaling.factor * scaling.original_context))
    return read


def _rope_of_phi(keys: Keys, context: int, head_dim: int) -> dict[str, Any]:
    """``su`` and ``yarn`` are what its first revisions called LongRoPE."""
    kinds = dict.fromkeys(("longrope", "su", "yarn"), KINDS["longrope"])
    theta, scaling = read_rope(keys, context, head_dim, kinds=kinds, original=4096)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _rope_of_kinds(keys: Keys, context: int, head_dim: int) -> dict[str, Any]:
    theta, scaling, local = read_rope_of_kinds(keys, context, head_dim, theta=1e6, local=1e4)
    return {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local}


def _window(keys: Keys, default: int | None) -> int | None:
    """Tokens that a layer with a window attends to; None: there is none."""
    if keys.config.get("sliding_window", default) is None:
        return None
    return keys.integer("sliding_window", default)


def _qwen_windows(keys: Keys) -> tuple[int, ...]:
    window = _window(keys, 4096) if keys.flag("use_sliding_window", False) else None
    first = keys.config.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        raise ModelError(f"{keys.where}: max_window_layers is {str(first)[:60]}, and must be a whole number")
    return _windows(keys, window, lambda layer: window is not None and layer >= first)


def _windows(keys: Keys, window: int | None, has_window: Callable[[int], bool]) -> tuple[int, ...]:
    """``ModelConfig.windows`` by ``layer_types``, or without that key by ``has_window``."""
    layers, kinds = keys.integer("num_hidden_layers", most=MAX_LAYERS), keys.config.get("layer_types")
    if kinds is None:
        kinds = [LAYER_TYPES[has_window(layer)] for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in LAYER_TYPES for kind in kinds):
        wanted = f"for each of {layers} layers {LAYER_TYPES[0]!r} or {LAYER_TYPES[1]!r}"
        raise ModelError(f"{keys.where}: layer_types is {str(kinds)[:60]}; whippet computes {wanted}")
    if LAYER_TYPES[1] not in kinds:
        return ()
    if window is None:
        raise ModelError(f"{keys.where}: layer_types has {LAYER_TYPES[1]!r}, and sliding_window is off")
    return tuple(window if kind == LAYER_TYPES[1] else 0 for kind in kinds)


@dataclass(frozen=True)
class Family:
    architecture: str
    read: Callable[[Keys], ModelConfig]
    keys: tuple[str, ...]
    """Which of ``_own_keys`` its config has."""


WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
GEMMA = (
    "hidden_activation", "attention_bias", "query_pre_attn_scalar", "sliding_window", "layer_types",
    "final_logit_softcapping",
)  # fmt: skip
MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
FAMILIES = {
    "llama": Family("LlamaForCausalLM", _llama, ("attention_bias", "mlp_bias")),
    "mistral": Family("MistralForCausalLM", _mistral, ("sliding_window",)),
    "qwen2": Family("Qwen2ForCausalLM", _qwen2, WINDOWS),
    "qwen3": Family("Qwen3ForCausalLM", _qwen3, ("attention_bias", *WINDOWS)),
    "gemma2": Family("Gemma2ForCausalLM", _gemma2, (*GEMMA, "attn_logit_softcapping")),
    "gemma3_text": Family("Gemma3ForCausalLM", _gemma3, (*GEMMA, "rope_local_base_freq")),
    "phi3": Family("Phi3ForCausalLM", _phi3, ("sliding_window", "original_max_position_embeddings")),
    "granite": Family("GraniteForCausalLM", _granite, ("attention_bias", "mlp_bias", *MULTIPLIERS)),
}
