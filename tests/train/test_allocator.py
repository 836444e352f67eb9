"""Segments grow where documents are long, unless a person has told torch something else."""

from __future__ import annotations

import pytest
import torch

from whippet.train import allocator
from whippet.train.limits import Limits

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LONG, SHORT = Limits(65_536, 32, 64, tile=4096), Limits(4096, 32, 64)


@pytest.mark.parametrize(("limits", "device", "grows"), [(LONG, GPU, True), (SHORT, GPU, False), (LONG, CPU, False)])
def test_segments_grow_for_long_documents(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, device: torch.device, grows: bool
) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    for name in allocator.OF_A_PERSON:
        monkeypatch.delenv(name, raising=False)
    allocator.prepare(limits, device)
    assert told == ["expandable_segments:True"] * grows


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_person_is_not_overruled(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", lambda _: pytest.fail("told"))
    monkeypatch.setenv(name, "max_split_size_mb:512")
    allocator.prepare(LONG, GPU)


def test_torch_knows_the_setting() -> None:
    """Also in a build for CPUs, where it changes nothing."""
    allocator.let_grow(True)
    allocator.let_grow(False)
