"""What is chosen where a person chose nothing: how weights are held for answering, and how a chat draws.

Comes in: a checkpoint's folder. Goes out: a base for ``load_decoder``, and a ``Sampling``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from whippet.errors import ModelError, UsageError
from whippet.infer.dense import free_bytes
from whippet.infer.sampling import Sampling
from whippet.model.size import parameters
from whippet.options import Base
from whippet.weights.files import read_json
from whippet.weights.load import held_in, read_config

CHAT = Sampling(max_new_tokens=2048, temperature=0.7, top_p=0.9)


def answering_base(folder: Path, device: torch.device) -> Base:
    """What ``base="auto"`` means for answering: nf4 or int8 if the checkpoint is that; else bf16 on a GPU; on the CPU,
    where fp32 products are the quicker ones, fp32 if it fits in half of the free memory, or bf16."""
    kind = held_in(folder)
    if kind == "nf4" or kind == "int8":
        return kind
    config, _ = read_config(folder)
    if device.type == "cuda" or 4 * parameters(config) > free_bytes() // 2:
        return "bf16"
    return "fp32"


def chat_sampling(folder: Path) -> Sampling:
    """How the checkpoint's ``generation_config.json`` wants a chat drawn; 0.7 and top_p 0.9 if it does not say. Its
    repetition penalty holds for a greedy chat too."""
    path = folder / "generation_config.json"
    wanted = read_json(path) if path.is_file() else {}
    try:
        return replace(_drawn(wanted), repetition_penalty=_number(wanted, "repetition_penalty", 1.0))
    except UsageError as error:
        raise ModelError(f"{path}: {error}") from error


def _drawn(wanted: Mapping[str, Any]) -> Sampling:
    if wanted.get("do_sample") is False:
        return Sampling(max_new_tokens=CHAT.max_new_tokens)
    if not wanted.get("do_sample") and "temperature" not in wanted:
        return CHAT
    return Sampling(
        max_new_tokens=CHAT.max_new_tokens,
        temperature=_number(wanted, "temperature", 1.0),
        top_p=_number(wanted, "top_p", 1.0),
        top_k=int(_number(wanted, "top_k", 0)),
        min_p=_number(wanted, "min_p", 0.0),
    )


def _number(wanted: Mapping[str, Any], key: str, default: float) -> float:
    value = wanted.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{key} is {value!r:.60}, wanted a number")
    return value
