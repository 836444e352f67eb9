"""What a config.json becomes: both spellings, real files' keys, and one clear line for everything else."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from helpers_models import CONFIGS, TINY

from whippet.errors import ModelError
from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.families import config_from_hf, config_to_hf

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA_3_1: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True,
    "vocab_size": 128256, "unsloth_fixed": True, "a_new_key": [1, 2],
}  # fmt: skip
QWEN_2_5: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip


MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
GEMMA_2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
}  # fmt: skip
PHI_3_5: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}, "rope_theta": 10000.0,
    "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32064,
}  # fmt: skip
BASES = {
    "llama": LLAMA_3_1,
    "qwen2": QWEN_2_5,
    "mistral": MISTRAL,
    "gemma2": GEMMA_2,
    "gemma3": GEMMA_2 | {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None,
        "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
    },
    "phi3": PHI_3_5,
    "granite": LLAMA_3_1 | {
        "model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_multiplier": 128**-0.5,
    },
}  # fmt: skip


def read(config: dict[str, Any], **changes: Any) -> ModelConfig:
    merged = {key: value for key, value in (config | changes).items() if value is not ...}
    return config_from_hf(merged, where="m/config.json")


def test_published_configs() -> None:
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    wanted = ModelConfig(
        "llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, norm_eps=1e-5, rope_theta=5e5, rope_scaling=scaling
    )
    assert read(LLAMA_3_1) == wanted
    new = {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": LLAMA_3_1["rope_scaling"] | {"rope_theta": 5e5}}
    assert read(LLAMA_3_1, **new) == wanted
    qwen = ModelConfig(
        "qwen2",
        151936,
        896,
        4864,
        24,
        14,
        2,
        64,
        32768,
        norm_eps=1e-6,
        rope_theta=1e6,
        qkv_bias=True,
        tie_embeddings=True,
    )
    assert read(QWEN_2_5) == qwen


def test_absent_keys_mean_what_they_mean_in_transformers() -> None:
    bare = read(LLAMA_3_1, num_key_value_heads=..., rms_norm_eps=..., rope_theta=..., rope_scaling=..., head_dim=None)
    assert (bare.num_kv_heads, bare.norm_eps, bare.rope_theta, bare.rope_scaling) == (32, 1e-6, 10000.0, None)
    scaling = dict(LLAMA_3_1["rope_scaling"])
    del scaling["original_max_position_embeddings"]
    met = read(LLAMA_3_1, rope_scaling=scaling).rope_scaling
    assert met is not None
    assert met.original_context == 131072


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, rope_scaling=RopeScaling("linear", 2.0, original_context=8192)),
        replace(TINY, rope_scaling=RopeScaling("llama3", 8.0, 1.5, 4.5, 64), tie_embeddings=True, norm_eps=1e-3),
        replace(TINY, qkv_bias=True, o_bias=True, mlp_bias=True, head_dim=24),
        replace(TINY, family="qwen2", qkv_bias=True),
        replace(CONFIGS["qwen2"], windows=(0, 9)),
        replace(CONFIGS["qwen3"], windows=(9, 0), qkv_bias=True, o_bias=True),
        CONFIGS["mistral"],
        replace(CONFIGS["mistral"], windows=()),
        CONFIGS["gemma2"],
        replace(CONFIGS["gemma2"], attention_softcap=None, logit_softcap=None, windows=()),
        CONFIGS["gemma3"],
        CONFIGS["phi3"],
    ],
)
def test_what_is_written_is_read(config: ModelConfig) -> None:
    written = config_to_hf(config, dtype="bfloat16", extra={"bos_token_id": 1})
    assert written["bos_token_id"] == 1
    assert not {"rope_parameters", "dtype"} & set(written)
    assert config_from_hf(written, where="x") == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model_type": "mamba"},
            "unknown architecture 'mamba'; known: gemma2, gemma3_text, granite, llama, mistral, phi3, qwen2, qwen3$",
        ),
        ({"model_type": ...}, r"unknown architecture \['LlamaForCausalLM'\]"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM is known"),
        ({"architectures": "x"}, "only LlamaForCausalLM"),
        ({"auto_map": {"AutoConfig": "x.Y"}}, "auto_map"),
        ({"_attn_implementation_internal": "a/b"}, "_attn_implementation_internal"),
        ({"model_file": "x.py"}, "model_file"),
        ({"hidden_size": ...}, "the key hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size is 4096, and must be a whole number"),
        ({"hidden_size": True}, "must be a whole number"),
        ({"hidden_size": 4096.0}, "must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 31}, "no multiple"),
        ({"num_key_value_heads": 5}, "no multiple of num_key_value_heads 5"),
        ({"head_dim": 63}, "even"),
        ({"rms_norm_eps": 0}, "above 0"),
        ({"rms_norm_eps": float("nan")}, "above 0"),
        ({"rope_theta": 1e400}, "above 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; whippet computes only 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        (
            {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}},
            "rope_type is 'ntk'; known: default, linear, llama3, longrope, yarn",
        ),
        ({"rope_scaling": YARN | {"beta_fast": 1.0}}, "beta_fast must be above beta_slow"),
        ({"rope_scaling": YARN | {"factor": 0}}, "factor is 0, and must be a number above 0"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate is '1', and must be true or false"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta is 1, and must be above 1 for yarn"),
        ({"attention_dropout": 0.1}, "attention_dropout is '0.1'; whippet computes only 0.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": "linear"}, "must be a table"),
        ({"rope_scaling": {"rope_type": "linear"}}, "the key factor is missing"),
        ({"rope_scaling": LLAMA_3_1["rope_scaling"] | {"low_freq_factor": 4.0}}, "high_freq_factor must be above"),
        ({"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "kinds of layers"),
    ],
)
def test_one_clear_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read(LLAMA_3_1, **changes)
    assert "m/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention"] * 23 + ["sliding_attention"]}, "sliding_window is off"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "for each of 24 layers 'full_attention' or"),
        ({"layer_types": ["full_attention"] * 23 + ["linear_attention"]}, "for each of 24 layers"),
        ({"layer_types": 7}, "layer_types is 7"),
        ({"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
        ({"use_sliding_window": "yes"}, "use_sliding_window"),
        ({"num_key_value_heads": ...}, "num_key_value_heads is missing"),
    ],
)
def test_windows_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read(QWEN_2_5, **changes)


def test_windows() -> None:
    assert read(QWEN_2_5).windows == ()
    assert read(QWEN_2_5, use_sliding_window=True).windows == (0,) * 21 + (32768,) * 3
    assert read(MISTRAL).windows == (4096,) * 32
    assert read(MISTRAL, sliding_window=None).windows == ()
    assert read(MISTRAL, sliding_window=...).windows == (4096,) * 32, "what transformers takes it to be"
    assert read(GEMMA_2).windows == (4096, 0) * 13
    assert read(PHI_3_5).windows == (262144,) * 32


def test_what_only_one_family_has() -> None:
    gemma = read(GEMMA_2)
    assert (gemma.attention_softcap, gemma.logit_softcap, gemma.attention_scale) == (50.0, 30.0, 256**-0.5)
    assert gemma.tie_embeddings and gemma.activation == "gelu_tanh" and gemma.unit_offset and gemma.post_norms
    bare = read(GEMMA_2, attn_logit_softcapping=None, final_logit_softcapping=None, query_pre_attn_scalar=...)
    assert (bare.attention_softcap, bare.logit_softcap, bare.query_pre_attn_scalar) == (None, None, 256)
    phi = read(PHI_3_5)
    assert phi.rope_scaling is not None and phi.fused_names
    assert (phi.rope_scaling.kind, phi.rope_scaling.original_context) == ("longrope", 4096)
    assert phi.rope_scaling.attention_factor == pytest.approx((1 + 5 / 12) ** 0.5), "32 times as long, of 2**12"


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        ("phi3", {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModel": "x.Y"}}, "auto_map"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 48}},
            "48 numbers",
        ),
        ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 48}}, "short_factor"),
        (
            "phi3",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type is 'linear'; known: default, longrope",
        ),
        ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop"),
        ("phi3", {"original_max_position_embeddings": 1}, "original_max_position_embeddings"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; whippet computes only 'gelu_pytorch_"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"sliding_window": None}, "sliding_window is off"),
        ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping is 0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "wanted full_attention and sliding_attention"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention: rope_type is 'linear'",
        ),
        ("mistral", {"layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ("granite", {"embedding_multiplier": 12.0}, "embedding_multiplier is '12.0'; whippet computes only 1.0"),
        ("granite", {"attention_multiplier": 0.0078125}, "attention_multiplier is 0.0078125; .* here 0.08838"),
        ("granite", {"attention_multiplier": ...}, "attention_multiplier is 1.0"),
    ],
)
def test_what_a_family_may_switch_on(base: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read(BASES[base], **changes)
    assert "m/config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_theta_within_the_table_counts() -> None:
    """As in transformers 5: one outside is what an absent one means."""
    new = {"rope_scaling": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert read(LLAMA_3_1, **new).rope_theta == 7.0
    assert read(LLAMA_3_1, **new | {"rope_parameters": {"rope_type": "default"}}).rope_theta == 5e5


def test_10000_odd_configs_raise_only_typed_errors() -> None:
    odd = [
        None, True, -1, 0, 1, 2, 1.5, 10**12, 2**70, 10**400, 1e400, float("nan"), "", "x", "\ud83d", [], {}, [[]],
        {"a": {}}, {"rope_type": "llama3"}, {"rope_type": []}, {"type": {}}, ["full_attention"], "llama", "qwen2",
        {"full_attention": 3}, {"type": "longrope", "short_factor": [0], "long_factor": "x"},
        ["sliding_attention"] * 26,
    ]  # fmt: skip
    draw = random.Random(0)
    outcomes = set()
    for _ in range(10_000):
        config = dict(draw.choice([*BASES.values()]))
        for _ in range(draw.randint(1, 3)):
            keys = [*config, "head_dim", "rope_parameters", "layer_types", "partial_rotary_factor"]
            config[draw.choice(keys)] = draw.choice(odd)
        try:
            config_from_hf(config, where="x")
            outcomes.add("read")
        except ModelError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
