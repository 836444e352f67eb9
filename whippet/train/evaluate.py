"""Loss and accuracy on held-out examples, and answers of the model as it is now.

Comes in: the model in training. Goes out: a record for ``metrics.jsonl``, and lines for ``samples.jsonl``. Nothing of
the training changes: no gradient, and the decoder's mode is put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from whippet.data.batches import Batches
from whippet.data.weigh import Weighed
from whippet.infer.dense import dense
from whippet.infer.engine import generate
from whippet.infer.evaluating import evaluating
from whippet.infer.model import Model
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder
from whippet.train.limits import Limits
from whippet.train.micro import micro_batches
from whippet.train.objectives.sft import Objective

SAMPLING = Sampling(max_new_tokens=64)
"""The likeliest answer, and of it enough to see where the model is going."""
DEFAULT_PROMPTS = 3


@dataclass(frozen=True)
class SamplePrompt:
    """What is asked: as a person reads it, and as the model does."""

    text: str
    ids: list[int]


@torch.no_grad()
def evaluate(decoder: Decoder, batches: Batches, objective: Objective, limits: Limits) -> dict[str, Any]:
    """Mean loss by weight and the share of trained tokens that are ranked first, over one pass of ``batches``."""
    loss_sum = weight_sum = 0.0
    correct = num_trained = 0
    with evaluating(decoder):
        for step in batches.steps(epochs=1):
            for batch in micro_batches(step.batches, limits.micro_tokens):
                loss = objective(decoder, batch, limits.chunk_rows)
                loss_sum += float(loss.loss_sum)
                weight_sum += batch.weight_sum
                correct += int(loss.correct)
                num_trained += loss.num_trained
    return {"eval_loss": loss_sum / weight_sum, "eval_accuracy": correct / num_trained, "eval_tokens": num_trained}


def sample(model: Model, prompts: Sequence[SamplePrompt]) -> list[str]:
    """The answer to each prompt."""
    with dense(model.decoder):
        replies = generate(model.decoder, [prompt.ids for prompt in prompts], SAMPLING, model.renderer.stop_ids)
    texts = [model.tokenizer.decode(reply.ids, skip_special=True) for reply in replies]
    for stop in model.renderer.stop_strings:
        texts = [text.partition(stop)[0] for text in texts]
    return texts


def sample_prompts(model: Model, asked: Sequence[str], examples: Sequence[Weighed]) -> list[SamplePrompt]:
    """``asked``, in a chat if there is a template; without any, what comes before the first trained turn of the first
    ``examples`` that have something there."""
    if asked:
        return [
            SamplePrompt(text, model.prompt_ids([{"role": "user", "content": text}] if model.has_template else text))
            for text in asked
        ]
    found: list[SamplePrompt] = []
    for example in examples:
        before = int(np.flatnonzero(example.weights)[0])
        ids = [int(token_id) for token_id in example.ids[:before]]
        if before > 1 and len(found) < DEFAULT_PROMPTS:
            found.append(SamplePrompt(model.tokenizer.decode(ids, skip_special=True), ids))
    return found
