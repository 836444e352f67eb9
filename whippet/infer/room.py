"""How much may follow a prompt, and how many pages a cache gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whippet.errors import UsageError
from whippet.infer.dense import free_bytes
from whippet.infer.sampling import Sampling
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.model.paged import PAGE, page_bytes

SHARE_OF_GPU, GPU_RESERVE = 0.85, 1024**3
"""Of what is free on a GPU; and what passes over long prompts need beside."""
MOST_ON_CPU = 2 * 1024**3


def room_for(prompt: Sequence[int], sampling: Sampling, config: ModelConfig) -> int:
    """Tokens that may follow ``prompt``: prompt and reply together fit in the model's context. UsageError if none."""
    if not prompt:
        raise UsageError("the prompt is empty: give at least one token (this tokenizer adds none of its own)")
    outside = next((token_id for token_id in prompt if not 0 <= token_id < config.vocab_size), None)
    if outside is not None:
        raise UsageError(f"token id {outside} is outside the vocabulary of {config.vocab_size}")
    if len(prompt) >= config.context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens, which leaves no room in the model's context of {config.context}"
        )
    return min(sampling.max_new_tokens, config.context - len(prompt))


def cache_pages(decoder: Decoder, max_rows: int, cache_tokens: int | None) -> int:
    """Pages of a cache for ``max_rows`` sequences: for ``cache_tokens``, or as many as there is room for."""
    config, each = decoder.config, page_bytes(decoder.config, decoder.compute_dtype)
    most = max_rows * -(-config.context // PAGE)
    if cache_tokens is not None:
        return max(1, min(-(-cache_tokens // PAGE), most))
    if decoder.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(decoder.device)
        room = int((free - GPU_RESERVE) * SHARE_OF_GPU)
    else:
        room = min(free_bytes() // 4, MOST_ON_CPU)
    if room < each:
        raise UsageError(f"there is no memory for a cache: a page of {PAGE} tokens takes {each / 2**20:.0f} MiB")
    return min(room // each, most)
