"""Memory of the host that a GPU can copy to and from while it computes, made quickly.

Such memory must not be paged out: it is pinned. torch's allocator lets the driver allocate it, which zeroes a page
after the other on one thread (2.3 GiB a second where this was measured: 16 GiB in 6.9 s). Here pages are touched by
several threads and then registered with the driver (16 GiB in 1.6 s).
"""

from __future__ import annotations

import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

PAGE = 4096
THREADS = 8


class Pinned:
    """``size`` bytes that stay where they are until this object is gone. Nothing may use ``bytes`` after it."""

    def __init__(self, size: int) -> None:
        self.bytes: Tensor = torch.empty(size, dtype=torch.uint8)
        touch(self.bytes)
        driver = torch.cuda.cudart()
        torch.cuda.check_error(int(driver.cudaHostRegister(self.bytes.data_ptr(), size, 0)))
        # The tensor is held by the finalizer: its memory is given back after it has been unregistered. A process that
        # ends gives all back by itself, and the driver may be gone before the finalizer's turn.
        weakref.finalize(self, _unregister, self.bytes).atexit = False


def touch(memory: Tensor) -> None:
    """Write to each page of ``memory`` (uint8), so that it is there."""
    threads = min(THREADS, os.cpu_count() or 1)
    share = max(-(-len(memory) // threads // PAGE) * PAGE, PAGE)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part[::PAGE].zero_(), memory.split(share)))


def _unregister(memory: Tensor) -> None:
    torch.cuda.synchronize()  # a copy may be on its way
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
