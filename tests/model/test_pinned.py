"""Pinned memory: every page of it is there before the driver is asked, and it is given back."""

from __future__ import annotations

import gc

import pytest
import torch

from whippet.model import pinned
from whippet.model.pinned import PAGE, Pinned, touch


@pytest.mark.parametrize("size", [1, PAGE, 5 * PAGE + 1, 64 * PAGE])
def test_each_page_is_touched(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "THREADS", 3)
    memory = torch.ones(size, dtype=torch.uint8)
    touch(memory)
    pages = memory.split(PAGE)
    assert all(bool((page == 0).any()) for page in pages)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_is_pinned_as_long_as_it_is_held() -> None:
    held = Pinned(3 * PAGE)
    there = held.bytes
    assert there.is_pinned()
    there.fill_(7)
    assert bool((there.to("cuda", non_blocking=True) == 7).all())
    del held
    gc.collect()
    assert not there.is_pinned()
