"""The least memory of a GPU with which a model can be trained and talked to: what ``whippet models`` tells.

Comes in: a ``ModelConfig``. Goes out: ``Needs``, bytes, by the same sums that plan a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from whippet.model.config import ModelConfig
from whippet.model.size import dense_bytes, kv_cache_bytes_per_token, layer_matrix_parameters, weight_bytes
from whippet.options import LoraOptions
from whippet.train.choose import least_limits
from whippet.train.memory import WORKSPACE_BYTES, Workload, peak_bytes

TOKENS = 2048
"""Of the longest example, and of a step."""
CHAT_TOKENS = 4096
"""That a conversation may have."""
ITEM = 2
"""Bytes of a number in 16 bit."""


@dataclass(frozen=True)
class Needs:
    """Bytes of a GPU."""

    qlora: int
    """Adapters over NF4; activations computed again, and parked in the host's memory."""
    lora: int
    """Adapters over 16-bit weights, in the same way."""
    full: int
    """Every weight in fp32, with AdamW's states."""
    chat_4bit: int
    chat_16bit: int


def needs(config: ModelConfig) -> Needs:
    """The least for examples of ``TOKENS`` tokens and conversations of ``CHAT_TOKENS``."""
    return Needs(
        qlora=_training(config, "nf4", LoraOptions()),
        lora=_training(config, "bf16", LoraOptions()),
        full=_training(config, "fp32", None),
        chat_4bit=_chat(config, "nf4"),
        chat_16bit=_chat(config, "bf16"),
    )


def _training(config: ModelConfig, base: str, lora: LoraOptions | None) -> int:
    # Whether flash-attn-4 will be there is not known; without it a soft cap takes most.
    capped = config.attention_softcap is not None
    work = Workload(config, base, ITEM, lora, "adamw", "cuda", TOKENS, TOKENS, 1.0, by_blocks=capped)
    return peak_bytes(work, least_limits(work))


def _chat(config: ModelConfig, base: str) -> int:
    """Weights, keys and values, the largest matrix as it is dequantised, the logits of a token in fp32."""
    weights = sum(weight_bytes(config, base, ITEM).values())
    cache = CHAT_TOKENS * kv_cache_bytes_per_token(config, ITEM)
    matrix = dense_bytes(layer_matrix_parameters(config) // 2, base, ITEM)
    return weights + cache + matrix + 8 * config.vocab_size + WORKSPACE_BYTES["cuda"]
