"""How torch cuts the memory of a GPU: in segments of a fixed size, or in one that grows.

The tensors of a long document are a gigabyte each, of a few sizes. A segment of a fixed size that was made for one of
them holds another only as far as that fits, and what is left over is lost to the next. A segment that grows is mapped
page by page (20 MiB): free pages are given up where they lie, and mapped again behind whatever there is.
(https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf)
"""

from __future__ import annotations

import os

import torch

from whippet.train.limits import Limits

OF_A_PERSON = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where torch itself is told; who has said something there is not overruled."""
GAPS = 2**28
"""Bytes of pages that are partly free, so that nothing can be mapped in their place: about a page for each of the dozen
large tensors that are there at a time."""


def prepare(limits: Limits, device: torch.device) -> None:
    """Before anything is placed on ``device``: where documents are so long that they go by tiles, let segments grow."""
    if device.type == "cuda" and limits.tile:
        let_grow(True)


def let_grow(grow: bool) -> None:
    """Whether segments that are made from now on grow."""
    if any(os.environ.get(name) for name in OF_A_PERSON):
        return
    # torch's public name for it was taken back, and this one is not in every version since 2.11.
    tell = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    tell(f"expandable_segments:{grow}")
