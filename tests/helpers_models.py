"""Tiny random models for tests: made by transformers from a config, saved as checkpoints; streams to run them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whippet.model.config import ModelConfig
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
TINY = ModelConfig("llama", 97, 64, 128, 2, 4, 2, 16, 2048)


def oracle(case: str, **changes: Any) -> Any:
    """A random transformers model in fp32 whose norms and biases are random too."""
    import transformers

    options = SHAPE | CASES[case] | changes
    family = options.pop("family", "llama")
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }
    config, model = kinds[family]
    torch.manual_seed(0)
    made = model(config(**options)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def to_v4(folder: Path) -> None:
    """Spell the config of a checkpoint as transformers 4 does."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
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
