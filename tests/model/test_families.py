"""What a config.json becomes: both spellings, real files' keys, and one clear line for everything else."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from helpers_models import TINY

from whippet.errors import ModelError
from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.families import config_from_hf, config_to_hf

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
        ({"model_type": "mamba"}, "unknown architecture 'mamba'; known: llama, qwen2"),
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
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'; known: default, linear, llama3"),
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
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "full_attention"),
        ({"layer_types": 7}, "full_attention"),
        ({"num_key_value_heads": ...}, "num_key_value_heads is missing"),
    ],
)
def test_windows_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read(QWEN_2_5, **changes)


def test_10000_odd_configs_raise_only_typed_errors() -> None:
    odd = [
        None, True, -1, 0, 1, 2, 1.5, 10**12, 2**70, 10**400, 1e400, float("nan"), "", "x", "\ud83d", [], {}, [[]],
        {"a": {}}, {"rope_type": "llama3"}, {"rope_type": []}, {"type": {}}, ["full_attention"], "llama", "qwen2",
    ]  # fmt: skip
    draw = random.Random(0)
    outcomes = set()
    for _ in range(10_000):
        config = dict(draw.choice([LLAMA_3_1, QWEN_2_5]))
        for _ in range(draw.randint(1, 3)):
            keys = [*config, "head_dim", "rope_parameters", "layer_types", "partial_rotary_factor"]
            config[draw.choice(keys)] = draw.choice(odd)
        try:
            config_from_hf(config, where="x")
            outcomes.add("read")
        except ModelError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
