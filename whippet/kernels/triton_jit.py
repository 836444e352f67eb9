"""Triton where it is installed, and a stand-in where it is not, so that kernels can be written beside their reference.

Comes out: ``triton``, ``tl`` (None without Triton), ``jit`` (marks a kernel) and ``usable`` (whether kernels can run on
a tensor). Without Triton a kernel stays a plain function that nothing calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["jit", "power_of_two", "tl", "triton", "usable"]

try:
    import triton
    import triton.language as tl
except ImportError:  # an optional package: machines without a GPU do without it
    triton = tl = None


def jit(kernel: Callable[..., None]) -> Any:
    """The kernel, compiled by Triton at its first launch."""
    return kernel if triton is None else triton.jit(kernel)


def usable(x: Tensor) -> bool:
    """Whether Triton's kernels can run where ``x`` lies."""
    return triton is not None and x.is_cuda


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << max(number - 1, 0).bit_length()
