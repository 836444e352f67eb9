"""On the CPU, a quantised decoder answers from weights that are dequantised once instead of for every token.

The values are those of the 4-bit weights, so the replies are too; only the memory differs. (Over FP8 weights bf16
activations are not rounded to FP8 then.) It is done where the dense copy fits in half of the memory that is free, and
never on a GPU, where weights are quantised for its memory and dequantising costs little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from whippet.kernels import frozen_linear
from whippet.model.decoder import Decoder

UNKNOWN_FREE_BYTES = 4 * 1024**3


def make_dense(decoder: Decoder) -> bool:
    """Replace quantised weights by dense ones in the compute dtype, for good; return whether it was done."""
    if not fits(decoder):
        return False
    with torch.no_grad():
        for _, projection in decoder.projections():
            if projection.quantised is not None:
                weight = frozen_linear.dense(projection.quantised, decoder.compute_dtype)
                projection.weight, projection.quantised = nn.Parameter(weight, requires_grad=False), None
    return True


@contextmanager
def dense(decoder: Decoder) -> Iterator[None]:
    """``make_dense`` inside, the quantised weights again afterwards: for a reply in the middle of training."""
    held = [(projection, projection.quantised) for _, projection in decoder.projections()]
    make_dense(decoder)
    try:
        yield
    finally:
        for projection, weight in held:
            if weight is not None:
                projection.set_quantised(weight)


def fits(decoder: Decoder) -> bool:
    """Whether ``decoder`` has quantised weights on the CPU whose dense copy fits in half of the free memory."""
    quantised = [p for _, p in decoder.projections() if p.quantised is not None]
    if not quantised or decoder.device.type != "cpu":
        return False
    wanted = sum(p.in_size * p.out_size for p in quantised) * decoder.compute_dtype.itemsize
    return wanted <= free_bytes() // 2


def free_bytes() -> int:
    """Memory that a program may still take, in bytes; a guess where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return UNKNOWN_FREE_BYTES
