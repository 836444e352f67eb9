"""Published checkpoints: their shapes, so that what they need can be told before anything is downloaded.

Each row has the numbers of the checkpoint's ``config.json`` that decide its size; what its family adds comes from
``families.py``. How rotary frequencies are stretched is left out: it costs nothing, and no model is made from this.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from whippet.model.config import ModelConfig
from whippet.model.families import config_from_hf

KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
ROWS: dict[str, tuple[Any, ...]] = {
    "meta-llama/Llama-3.3-70B-Instruct": ("llama", 8192, 28672, 80, 64, 8, 128, 128256, 131072, False),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, 131072, False),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 3072, 8192, 28, 24, 8, 128, 128256, 131072, True),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, True),
    "meta-llama/Llama-2-7b-chat-hf": ("llama", 4096, 11008, 32, 32, 32, 128, 32000, 4096, False),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, 131072, False),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("llama", 2048, 5632, 22, 32, 4, 64, 32000, 2048, False),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", 2048, 8192, 24, 32, 32, 64, 49152, 8192, True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, True),
    "01-ai/Yi-1.5-9B-Chat": ("llama", 4096, 11008, 48, 32, 4, 128, 64000, 4096, False),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistral", 4096, 14336, 32, 32, 8, 128, 32768, 32768, False),
    "HuggingFaceH4/zephyr-7b-beta": ("mistral", 4096, 14336, 32, 32, 8, 128, 32000, 32768, False),
    "Qwen/Qwen2.5-72B-Instruct": ("qwen2", 8192, 29568, 80, 64, 8, 128, 152064, 32768, False),
    "Qwen/Qwen2.5-32B-Instruct": ("qwen2", 5120, 27648, 64, 40, 8, 128, 152064, 32768, False),
    "Qwen/Qwen2.5-14B-Instruct": ("qwen2", 5120, 13824, 48, 40, 8, 128, 152064, 32768, False),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 32768, False),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", 2048, 11008, 36, 16, 2, 128, 151936, 32768, True),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 8960, 28, 12, 2, 128, 151936, 32768, True),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 896, 4864, 24, 14, 2, 64, 151936, 32768, True),
    "Qwen/Qwen3-8B": ("qwen3", 4096, 12288, 36, 32, 8, 128, 151936, 40960, False),
    "Qwen/Qwen3-4B": ("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, 40960, True),
    "google/gemma-2-27b-it": ("gemma2", 4608, 36864, 46, 32, 16, 128, 256000, 8192, True),
    "google/gemma-2-9b-it": ("gemma2", 3584, 14336, 42, 16, 8, 256, 256000, 8192, True),
    "google/gemma-2-2b-it": ("gemma2", 2304, 9216, 26, 8, 4, 256, 256000, 8192, True),
    "google/gemma-3-1b-it": ("gemma3_text", 1152, 6912, 26, 4, 1, 256, 262144, 32768, True),
    "microsoft/Phi-3.5-mini-instruct": ("phi3", 3072, 8192, 32, 32, 32, 96, 32064, 131072, False),
    "microsoft/Phi-3-medium-4k-instruct": ("phi3", 5120, 17920, 40, 40, 10, 128, 32064, 4096, False),
}


@cache
def known(name: str) -> ModelConfig:
    """The shape of the checkpoint ``name``, one of ``ROWS``."""
    return config_from_hf(dict(zip(KEYS, ROWS[name], strict=True)), where=name)
