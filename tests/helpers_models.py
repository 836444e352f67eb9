"""Tiny random models for tests: made by transformers from a config, saved as checkpoints; streams to run them on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.decoder import Decoder

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}  # fmt: skip
SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-4,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-3": {"rope_parameters": LLAMA3},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 700.0, "factor": 3.0}},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 24},
    "one-kv-head": {"num_key_value_heads": 1},
    "qwen2": {"family": "qwen2"},
    "qwen2-tied": {"family": "qwen2", "tie_word_embeddings": True, "rope_parameters": LLAMA3},
}
WINDOW = 24
FACTORS = [1.0 + 0.1 * place for place in range(8)], [1.0 + 0.7 * place for place in range(8)]
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"family": "mistral", "sliding_window": WINDOW, "head_dim": 24},
    "mistral-v0.3": {"family": "mistral", "sliding_window": None},
    "qwen2-windows": {
        "family": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1,
    },
    "qwen3": {
        "family": "qwen3", "head_dim": 24, "attention_bias": True, "use_sliding_window": True, "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "gemma2": {
        "family": "gemma2", "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": WINDOW,
        "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5, "attention_bias": True,
    },
    "gemma3": {
        "family": "gemma3_text", "num_hidden_layers": 3, "head_dim": 24, "query_pre_attn_scalar": 20,
        "sliding_window": WINDOW, "final_logit_softcapping": 2.5, "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    },
    "phi3": {
        "family": "phi3", "sliding_window": 50, "original_max_position_embeddings": 40,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 700.0, "short_factor": FACTORS[0], "long_factor": FACTORS[1],
        },
    },
    "phi3-4k": {"family": "phi3", "sliding_window": WINDOW},
    "qwen2-yarn": {
        "family": "qwen2", "max_position_embeddings": 160,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 700.0, "factor": 4.0, "original_max_position_embeddings": 40,
            "beta_fast": 4.0, "beta_slow": 1.0, "truncate": False,
        },
    },
    "granite": {"family": "granite", "attention_multiplier": 0.25, "attention_bias": True, "mlp_bias": True},
}  # fmt: skip
"""One or two of each family, with every feature that it has switched on."""
TINY = ModelConfig("llama", 97, 64, 128, 2, 4, 2, 16, 2048)

GEMMA = replace(
    TINY,
    family="gemma2",
    tie_embeddings=True,
    windows=(9, 0),
    post_norms=True,
    unit_offset=True,
    scale_embeddings=True,
    activation="gelu_tanh",
    query_pre_attn_scalar=20,
    attention_softcap=1.5,
    logit_softcap=2.5,
)
CONFIGS = {
    "llama": TINY,
    "llama3": replace(TINY, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64), tie_embeddings=True),
    "mistral": replace(TINY, family="mistral", windows=(9, 9)),
    "qwen2": replace(TINY, family="qwen2", qkv_bias=True, num_heads=4, num_kv_heads=1),
    "qwen3": replace(TINY, family="qwen3", head_dim=24, qk_norm=True),
    "gemma2": GEMMA,
    "gemma3": replace(
        GEMMA, family="gemma3_text", qk_norm=True, attention_softcap=None, local_rope_theta=300.0, windows=(0, 9)
    ),
    "phi3": replace(
        TINY,
        family="phi3",
        windows=(11, 11),
        fused_names=True,
        rope_scaling=RopeScaling(
            "longrope",
            original_context=14,
            short_factors=tuple(FACTORS[0]),
            long_factors=tuple(FACTORS[1]),
            attention_factor=1.2,
        ),
    ),
}
"""The same without transformers, and what else differs between models."""


def deeper(config: ModelConfig, layers: int) -> ModelConfig:
    """With so many layers; windows go on as they began."""
    windows = tuple((config.windows * layers)[:layers])
    return replace(config, num_layers=layers, windows=windows)


def oracle(case: str, **changes: Any) -> Any:
    """A random transformers model in fp32 whose norms and biases are random too."""
    import transformers

    options = SHAPE | (CASES | FAMILIES)[case] | changes
    family = options.pop("family", "llama")
    config = transformers.AutoConfig.for_model(family, pad_token_id=None, eos_token_id=1, bos_token_id=1, **options)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def to_v4(folder: Path) -> None:
    """Spell the config of a checkpoint as transformers 4 does."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    rope.pop("partial_rotary_factor", None)
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of a checkpoint's config; ``...`` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def random_decoder(config: ModelConfig = TINY, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder with random fp32 weights and the compute dtype ``dtype``."""
    decoder = Decoder(config, device="cpu", compute_dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator)
    return decoder.eval()


def stream(*lengths: int) -> tuple[Tensor, Tensor, int]:
    """Positions, borders and greatest length of documents that lie end to end."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return positions, borders, max(lengths)


def logits(decoder: Decoder, ids: Tensor, *lengths: int) -> Tensor:
    """Scores of every token of a packed stream of documents (one, by default)."""
    with torch.no_grad():
        return decoder.logits(decoder(ids, *stream(*(lengths or (len(ids),)))))
