"""Greedy replies equal those of transformers' generate, token for token, and so do the logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from whippet.infer.engine import generate
from whippet.infer.model import Model
from whippet.infer.sampling import Sampling

transformers = pytest.importorskip("transformers")


def test_greedy_generation_equals_transformers(model: Model, checkpoint: Path) -> None:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    prompts = [model.prompt_ids(text) for text in ("the quick", "one grey cat", "🐕", "0123456789 over two lazy dogs")]
    replies = generate(model.decoder, prompts, Sampling(40), frozenset({1}))
    for prompt, reply in zip(prompts, replies, strict=True):
        expected = oracle.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False,
            eos_token_id=1, pad_token_id=4,
        )[0, len(prompt) :].tolist()  # fmt: skip
        ended = [1] if reply.finish == "stop" else []
        assert reply.ids + ended == expected
        with torch.no_grad():
            logits_TV = oracle(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(model.logits(prompt), logits_TV, atol=1e-4, rtol=0)
