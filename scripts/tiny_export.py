"""A finished run of ``train_tiny.py`` as the embedded checkpoint: weights in bf16, and the context that it promises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from whippet.model.config import ModelConfig
from whippet.model.families import config_to_hf
from whippet.weights.hf import CheckpointReader, write_checkpoint

MOST_BYTES = 8_000_000
KEPT = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [whippet, tiny]
---

# whippet tiny

A chat model of 3.8 million parameters that knows a small world: arithmetic, dates, units, sorting, comparing, colours,
small facts, letters, lists, finding and re-writing what a text says, and JSON tool calls. It exists so that
`whippet demo` has something to teach on two CPU cores, and knows nothing beyond its world.

An ordinary Llama checkpoint in bf16 with tokenizer and chat template, trained from random weights by whippet's own full
fine-tuning on dialogues that `scripts/tiny_world.py` writes:

    {command}

Seed {seed}; {records:,} dialogues; {steps:,} steps, {tokens_seen:,} tokens; {device}, torch {torch}. More in
`score.json`.

## Held-out score

Exact match on {asked} questions whose content was kept out of all training text: **{share}** (with the weights in nf4:
{nf4}).

| topic | right |
|---|---|
{rows}"""


def export_bf16(run: Path, out: Path, shape: ModelConfig) -> None:
    """Write ``run/model`` into ``out`` in bf16, with ``shape`` as its configuration."""
    source = run / "model"
    for name in KEPT:
        shutil.copy(source / name, out / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids = {key: config[key] for key in SPECIAL_IDS}
    text = json.dumps(config_to_hf(shape, dtype="bfloat16", extra=ids), indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    tokenizer = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["model_max_length"] = shape.context
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")
    with CheckpointReader(source) as reader:
        write_checkpoint(out, _in_bf16(reader))
    for path in out.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in out.iterdir())
    if size > MOST_BYTES:
        raise ValueError(f"{out} has {size:,} bytes, wanted at most {MOST_BYTES:,}")


def _in_bf16(reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
    for name in reader.tensors:
        yield name, reader.tensor(name).to(torch.bfloat16)
