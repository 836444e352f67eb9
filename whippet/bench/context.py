"""The longest document of which a card can learn in one step: as planned, and as run.

Comes in: a setting and the memory of a card. Goes out: ``Side``, tokens and the peak.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from whippet.bench.results import Side, gib
from whippet.bench.settings import Setting
from whippet.bench.steps import measure, workload
from whippet.errors import UsageError
from whippet.recipe import parse_bytes
from whippet.train.memory import Longest, host_room, longest_context

GPU = torch.device("cuda")
"""Contexts are those of a GPU, whoever asks."""


def longest(setting: Setting, cap: str) -> Longest:
    """What ``cap`` (such as ``16GB``) holds. UsageError if it holds nothing."""
    budget = parse_bytes(cap, "context")
    if budget is None:
        raise UsageError("--context auto: wanted a size, such as 16GB")
    found = longest_context(workload(setting, GPU), budget)
    if found is None:
        raise UsageError(f"{cap} do not hold one token of {setting.shape} {setting.base}")
    return found


def planned_context(setting: Setting, cap: str) -> Side:
    """What the planner promises; nothing is run."""
    found = longest(setting, cap)
    details = {"limits": found.limits.as_dict(), "host": found.host}
    return Side(found.tokens, found.peak, planned=True, details=details)


def measured_context(setting: Setting, cap: str, device: torch.device) -> Side:
    """Two steps of that length, while torch may take no more of the device than ``cap``: the second finds the
    optimiser's states there. UsageError if the host has no room for what is parked."""
    found = longest(setting, cap)
    if found.host > (room := host_room()):
        raise UsageError(f"{cap}: {gib(found.host)} GiB of the host's memory would be pinned, and {gib(room)} may be")
    long = replace(setting, length=found.tokens)
    with _capped(parse_bytes(cap, "context") or 0, device):
        measured = measure(long, device, steps=1, warmup=1, limits=found.limits)
    return Side(found.tokens, measured.peak, details=measured.as_dict() | {"host": found.host})


@contextlib.contextmanager
def _capped(cap: int, device: torch.device) -> Iterator[None]:
    """torch's allocator may hold ``cap`` bytes."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
