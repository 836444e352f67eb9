"""The longest context: what is told is the planner's, and what is run is that length under the cap."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from whippet.bench import context
from whippet.bench.context import longest, measured_context, planned_context
from whippet.bench.settings import CAPS, ROWS, Setting
from whippet.bench.steps import Measured, measure
from whippet.errors import UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETTING = next(row.setting for row in ROWS if row.kind == "context")


def test_more_memory_holds_more() -> None:
    told = [planned_context(SETTING, cap) for cap in CAPS]
    lengths = [side.value for side in told]
    assert all(side.planned for side in told) and lengths == sorted(lengths) and len(set(lengths)) == len(CAPS)
    assert told[0].peak is not None and 0.97 * 16e9 < told[0].peak <= 16e9


@pytest.mark.parametrize("cap", ["1MB", "auto", "16", "much"])
def test_caps_that_are_none(cap: str) -> None:
    with pytest.raises(UsageError):
        longest(SETTING, cap)


def test_the_host_must_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "host_room", lambda: 2**20)
    with pytest.raises(UsageError, match="of the host's memory would be pinned"):
        measured_context(SETTING, "16GB", GPU)


def test_only_a_gpu_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere nothing would hold it to the cap."""
    monkeypatch.setattr(context, "host_room", lambda: 2**40)
    monkeypatch.setattr(context, "measure", lambda *_, **__: pytest.fail("run"))
    with pytest.raises(UsageError, match="runs on a GPU only, and the device is cpu"):
        measured_context(SETTING, "16GB", CPU)


@pytest.mark.parametrize(("device", "number"), [("cuda", 2), ("cuda:1", 1)])
def test_the_cap_is_of_that_card(monkeypatch: pytest.MonkeyPatch, device: str, number: int) -> None:
    """torch takes a share of a card by its number only; ``cuda`` without one is the current card."""
    shares, grow = [], []
    monkeypatch.setattr(context, "let_grow", grow.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (0, 1000 * (1 + number)))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: shares.append(given))
    with context._capped(500, torch.device(device)):
        assert shares == [(500 / (1000 * (1 + number)), number)]
        assert grow == [True]
    assert shares[1:] == [(1.0, number)] and grow == [True, False]


def test_it_is_that_length_which_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the CPU in a GPU's place."""
    small, caps = Setting("tiny", docs=1, rank=4), []

    def here(setting: Setting, device: torch.device, **named: Any) -> Measured:
        assert device == GPU
        return measure(setting, CPU, **named)

    def capped(cap: int, device: torch.device) -> contextlib.nullcontext[None]:
        caps.append((cap, device))
        return contextlib.nullcontext()

    monkeypatch.setattr(context, "host_room", lambda: 2**40)
    monkeypatch.setattr(context, "measure", here)
    monkeypatch.setattr(context, "_capped", capped)
    side = measured_context(small, "309MB", GPU)
    found = longest(small, "309MB")
    assert side.value == found.tokens and not side.planned and caps == [(309 * 10**6, GPU)]
    assert side.details["setting"]["length"] == found.tokens and side.details["limits"] == found.limits.as_dict()
