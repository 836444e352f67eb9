"""Triton where it is installed, and a stand-in where it is not, so that kernels can be written beside their reference.

Comes out: ``triton``, ``tl`` (None without Triton), ``jit`` (marks a kernel) and ``usable`` (whether kernels can run on
a tensor). Without Triton a kernel stays a plain function that nothing calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["jit", "power_of_two", "tl", "triton", "usable", "wider"]

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


def wider(x_TH: Tensor, room: int) -> Tensor:
    """``x_TH`` with ``room`` more columns, which are what lies in memory behind each row: nobody else's, by agreement.

    The result shares memory but no history: autograd neither follows it nor sees what is written through it.
    """
    size = (len(x_TH), x_TH.shape[1] + room)
    assert x_TH.stride(1) == 1 and (x_TH.stride(0) >= size[1] or len(x_TH) == 1), (x_TH.shape, x_TH.stride(), room)
    return x_TH.new_empty(0).set_(x_TH.untyped_storage(), x_TH.storage_offset(), size, (x_TH.stride(0), 1))
