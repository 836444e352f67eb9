"""How much memory a piece of work holds and takes, on the CPU, where torch keeps no count."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")


def traced(work: Callable[[], Result]) -> tuple[Result, int, int]:
    """What ``work`` gives; the bytes of tensors that there are more after it than before; the most there were."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    assert seen.profiler is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return result, held, most
