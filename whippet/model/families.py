"""One function a family: the dictionary of a ``config.json`` in, a ``ModelConfig`` out, and back again.

Both spellings of transformers are read: v4 (``rope_theta`` + ``rope_scaling``) and v5 (``rope_parameters``; where both
are present the v4 keys win, as there). The v4 one is written, since both versions read it. What would change the
computation in a way that the decoder does not know is a ModelError; keys that do not are passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from whippet.errors import ModelError
from whippet.model.config import ModelConfig, RopeScaling

REMOTE_CODE = ("auto_map", "custom_pipelines", "_attn_implementation_internal", "model_file", "trust_remote_code")
"""Keys by which a config asks a loader to run code. A checkpoint that has one is refused."""

MAX_LAYERS = 4096
"""More than any model has, and few enough that a forged number costs no time."""

Number = TypeVar("Number", int, float)


def config_from_hf(config: dict[str, Any], *, where: str) -> ModelConfig:
    """Read the content of a ``config.json``; ``where`` names it in errors. Raises ModelError."""
    for key in REMOTE_CODE:
        if config.get(key):
            raise ModelError(f"{where}: '{key}' asks for code from the checkpoint to be run; whippet runs none")
    family = config.get("model_type")
    architectures = config.get("architectures") or []
    if not isinstance(family, str) or family not in FAMILIES:
        shown = family if isinstance(family, str) else architectures
        raise ModelError(f"{where}: unknown architecture {shown!r}; known: {', '.join(sorted(FAMILIES))}")
    wanted = ARCHITECTURES[family]
    if not isinstance(architectures, list) or any(name != wanted for name in architectures):
        raise ModelError(f"{where}: architectures is {architectures!r}; of the family {family} only {wanted} is known")
    return FAMILIES[family](Keys(config, where))


def config_to_hf(config: ModelConfig, *, dtype: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint in ``dtype`` (``"bfloat16"``), in v4 spelling, with ``extra`` keys added."""
    written: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_to_hf(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
    }
    if config.family == "llama":
        written |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    else:
        written |= {"use_sliding_window": False}
    return written | (extra or {})


class Keys:
    """Typed access to a config's keys; each complaint names the file, the key, what was met and what was wanted."""

    def __init__(self, config: dict[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def integer(self, key: str, default: int | None = None, *, most: int = 2**31) -> int:
        return self._number(key, default, int, most, f"a whole number from 1 to {most}")

    def real(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, float, 1e30, "a number above 0"))

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.where}: {key} is {value!r}, and must be true or false")
        return value

    def must_be(self, key: str, *known: Any) -> None:
        """The decoder computes only ``known`` (the first is what an absent or null key means)."""
        value = self.config.get(key)
        if value is not None and value not in known:
            raise ModelError(f"{self.where}: {key} is {value!r}; whippet computes only {known[0]!r}")

    def _number(self, key: str, default: Number | None, kind: type[Number], most: float, wanted: str) -> Number:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.where}: the key {key} is missing")
            return default
        good = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not good or not 0 < value <= most:
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]}, and must be {wanted}")
        return kind(value)


def _llama(keys: Keys) -> ModelConfig:
    attention_bias = keys.flag("attention_bias", False)
    return _decoder(keys, "llama", qkv_bias=attention_bias, o_bias=attention_bias, context=2048)


def _qwen2(keys: Keys) -> ModelConfig:
    keys.must_be("use_sliding_window", False)
    layer_types = keys.config.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise ModelError(
            f"{keys.where}: layer_types is {str(layer_types)[:60]}; whippet computes only 'full_attention'"
        )
    if "num_key_value_heads" not in keys.config:
        raise ModelError(f"{keys.where}: the key num_key_value_heads is missing")
    return _decoder(keys, "qwen2", qkv_bias=True, o_bias=False, context=32768)


def _decoder(keys: Keys, family: str, *, qkv_bias: bool, o_bias: bool, context: int) -> ModelConfig:
    """The keys that the families share. An absent key means what the family's config class of transformers says."""
    keys.must_be("hidden_act", "silu", "swish")
    hidden, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    kv_heads = keys.integer("num_key_value_heads", heads)
    head_dim = keys.integer("head_dim", max(1, hidden // heads))
    if keys.config.get("head_dim") is None and hidden % heads:
        raise ModelError(f"{keys.where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    if heads % kv_heads:
        raise ModelError(f"{keys.where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2:
        raise ModelError(f"{keys.where}: head_dim is {head_dim}; rotary embeddings need an even one")
    longest = keys.integer("max_position_embeddings", context)
    theta, scaling = _rope(keys, longest)
    return ModelConfig(
        family=family,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size"),
        num_layers=keys.integer("num_hidden_layers", most=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=longest,
        norm_eps=keys.real("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=keys.flag("mlp_bias", False) if family == "llama" else False,
        tie_embeddings=keys.flag("tie_word_embeddings", False),
    )


def _rope(keys: Keys, context: int) -> tuple[float, RopeScaling | None]:
    new, old = keys.config.get("rope_parameters"), keys.config.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise ModelError(f"{keys.where}: {key} is {str(value)[:60]!r}, and must be a table")
        if any(isinstance(inner, dict) for inner in (value or {}).values()):
            raise ModelError(f"{keys.where}: {key} differs between kinds of layers, which whippet does not compute")
    params = Keys(old or new or {}, f"{keys.where}: {'rope_scaling' if old else 'rope_parameters'}")
    theta = keys.real("rope_theta", params.real("rope_theta", 10000.0))
    for holder in (keys, params):
        holder.must_be("partial_rotary_factor", 1.0, 1)
    kind = params.config.get("rope_type", params.config.get("type")) or "default"
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ModelError(f"{params.where}: rope_type is {kind!r}; known: default, linear, llama3")
    named: Literal["linear", "llama3"] = "linear" if kind == "linear" else "llama3"
    if named == "linear":
        return theta, RopeScaling(kind=named, factor=params.real("factor"))
    original = keys.config.get("original_max_position_embeddings")
    scaling = RopeScaling(
        kind=named,
        factor=params.real("factor"),
        low_freq_factor=params.real("low_freq_factor"),
        high_freq_factor=params.real("high_freq_factor"),
        original_context=(keys if original else params).integer("original_max_position_embeddings", context),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ModelError(f"{params.where}: high_freq_factor must be above low_freq_factor")
    return theta, scaling


def _rope_scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


FAMILIES: dict[str, Callable[[Keys], ModelConfig]] = {"llama": _llama, "qwen2": _qwen2}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
