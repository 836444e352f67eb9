"""Small data, small steps and whole runs for tests of training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers_infer import make_decoder

from whippet import lora
from whippet.data.batches import Batch, DataPosition, Step, make_batch
from whippet.data.weigh import Weighed
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions, TrainOptions
from whippet.train.learner import Learner
from whippet.train.limits import Limits
from whippet.train.objectives import sft
from whippet.train.optim import make_optimizer, trained_parameters

VOCABULARY = 61
TINY_LORA = LoraOptions(r=4, targets=("q_proj", "v_proj", "down_proj"))
RUN = {
    "model": {"base": "fp32", "device": "cpu"},
    "lora": {"r": 2, "targets": ["q_proj", "down_proj"], "dropout": 0.1},
    "train": {"max_steps": 8, "tokens_per_step": 160, "learning_rate": 1e-2, "save_every": 2},
    "data": {"max_length": 128},
}


def write_records(path: Path, count: int = 40, *, seed: int = 0) -> Path:
    """Chats of ragged lengths, as JSON lines."""
    draw = random.Random(seed)
    words = ["the", "quick", "brown", "whippet", "runs", "over", "two", "lazy", "dogs", "and", "one", "grey", "cat"]
    lines = []
    for number in range(count):
        asked = " ".join(draw.choices(words, k=draw.randint(1, 6)))
        answer = " ".join(draw.choices(words, k=draw.randint(1, 9))) + f" {number}"
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def settings(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables for ``whippet.finetune`` on the CPU: ``RUN`` with some keys changed."""
    return {table: {**RUN.get(table, {}), **changes.get(table, {})} for table in RUN | changes}


def losses(run_folder: Path) -> list[dict[str, Any]]:
    """The records of the run's metrics without what two equal runs may differ in."""
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def example(length: int, draw: random.Random, *, fractional: bool = False) -> Weighed:
    """Random ids of which a random part is trained, at least the last."""
    ids = np.array([draw.randrange(VOCABULARY) for _ in range(length)], dtype=np.int32)
    weights = np.array([float(draw.random() < 0.5) for _ in range(length)], dtype=np.float32)
    weights[0], weights[-1] = 0.0, 1.0
    if fractional:
        weights *= np.float32(0.3)
    return Weighed(ids, weights)


def make_step(batches: list[Batch]) -> Step:
    """A step of these packs."""
    return Step(
        batches=tuple(batches),
        weight_sum=sum(batch.weight_sum for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_examples=sum(batch.num_examples for batch in batches),
        position=DataPosition(),
    )


def ragged_step(packs: list[list[int]], *, seed: int = 0) -> Step:
    """A step of packs of documents of these lengths."""
    draw = random.Random(seed)
    return make_step([make_batch([example(length, draw, fractional=length % 3 == 0) for length in p]) for p in packs])


def make_learner(
    *,
    method: str = "lora",
    dropout: float = 0.0,
    limits: Limits | None = None,
    decoder: Decoder | None = None,
    **options: Any,
) -> Learner:
    """A learner of a tiny fp32 decoder. B factors are random, so that every factor gets a gradient."""
    decoder = make_decoder(vocab_size=VOCABULARY) if decoder is None else decoder
    if method == "lora":
        lora.attach(decoder, LoraOptions(r=4, targets=TINY_LORA.targets, dropout=dropout), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in lora.adapter_parameters(decoder).items():
                if name.endswith(".b"):
                    parameter.normal_(0.0, 0.1, generator=generator)
    else:
        decoder.requires_grad_(True)
    chosen = TrainOptions(**{"method": method, "learning_rate": 1e-2, **options})
    parameters = trained_parameters(decoder, method)
    notes: list[str] = []
    learner = Learner(
        decoder,
        parameters,
        make_optimizer(parameters, chosen),
        sft.loss,
        chosen,
        limits if limits is not None else Limits(micro_tokens=4096, recompute=0, chunk_rows=64),
        notes.append,
    )
    learner.notes = notes  # type: ignore[attr-defined]
    return learner


def weights_of(learner: Learner) -> torch.Tensor:
    """All trained numbers in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in learner.parameters.values()])
