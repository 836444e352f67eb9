"""The longest document of which a card can learn in one step: as planned, and as run.

Comes in: a setting and the memory of a card. Goes out: ``Side``, tokens and the peak.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from whippet.bench.results import Side, gib
from whippet.bench.settings import Setting
from whippet.bench.steps import measure, workload
from whippet.errors import UsageError
from whippet.recipe import parse_bytes
from whippet.train.allocator import let_grow
from whippet.train.choose import Longest, host_room, longest_context

GPU = torch.device("cuda")
"""Contexts are those of a GPU, whoever asks."""


def check_caps(caps: Sequence[str], device: torch.device) -> None:
    """UsageError unless each of ``caps`` is a size, and ``device`` a GPU on which they can be run."""
    for cap in caps:
        num_bytes(cap)
    if caps and device.type != "cuda":
        raise UsageError(f"--context {','.join(caps)}: runs on a GPU only, and the device is {device}")


def num_bytes(cap: str) -> int:
    """Of ``cap``. UsageError if it is no size."""
    found = None
    with contextlib.suppress(UsageError):
        found = parse_bytes(cap, "context")
    if found is None:
        raise UsageError(f"--context {cap!r}: wanted a size, such as 16GB")
    return found


def longest(setting: Setting, cap: str) -> Longest:
    """What ``cap`` (such as ``16GB``) holds. UsageError if it holds nothing."""
    found = longest_context(workload(setting, GPU), num_bytes(cap))
    if found is None:
        raise UsageError(f"{cap} do not hold one token of {setting.shape} {setting.held}")
    return found


def planned_context(setting: Setting, cap: str) -> Side:
    """What the planner promises; nothing is run."""
    found = longest(setting, cap)
    details = {"limits": found.limits.as_dict(), "host": found.host}
    return Side(found.tokens, found.peak, planned=True, details=details)


def measured_context(setting: Setting, cap: str, device: torch.device) -> Side:
    """Two steps of that length, while torch may take no more of the device than ``cap``: the second finds the
    optimiser's states there. UsageError if that is no GPU, or the host has no room for what is parked."""
    check_caps([cap], device)
    found = longest(setting, cap)
    if found.host > (room := host_room()):
        raise UsageError(f"{cap}: {gib(found.host)} GiB of the host's memory would be pinned, and {gib(room)} may be")
    long = replace(setting, length=found.tokens)
    with _capped(num_bytes(cap), device):
        measured = measure(long, device, steps=1, warmup=1, limits=found.limits)
    return Side(found.tokens, measured.peak, details=measured.as_dict() | {"host": found.host})


@contextlib.contextmanager
def _capped(cap: int, device: torch.device) -> Iterator[None]:
    """torch's allocator may hold ``cap`` bytes, in segments that grow, as in a run of such documents."""
    torch.cuda.empty_cache()
    number = torch.cuda.current_device() if device.index is None else device.index
    _, total = torch.cuda.mem_get_info(number)
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), number)
    let_grow(True)
    try:
        yield
    finally:
        let_grow(False)
        torch.cuda.set_per_process_memory_fraction(1.0, number)
