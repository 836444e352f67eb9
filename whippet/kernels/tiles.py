"""Parts of kernels that go over a matrix by tiles, of some rows and some columns.

A program that holds a tile, not a row, can add a product of low rank to it on the tensor cores, and has few numbers in
registers however wide a row is. The largest number of a row is then found by many programs: each raises it in memory.
"""

from __future__ import annotations

from whippet.kernels import triton_jit
from whippet.kernels.triton_jit import tl

__all__ = ["low_rank", "raise_largest", "ranks_at_once", "tile_of"]

MOST_RANKS = 32
"""Ranks that are multiplied at once: more would take registers and shared memory from other programs."""


def ranks_at_once(rank: int) -> int:
    """A power of two, and what tensor cores multiply at least."""
    return min(max(triton_jit.power_of_two(rank), 16), MOST_RANKS)


@triton_jit.jit
def tile_of(program, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows and columns of a program: those that run together lie side by side in memory."""
    across = tl.cdiv(width, COLUMNS)
    return program // across * ROWS + tl.arange(0, ROWS), program % across * COLUMNS + tl.arange(0, COLUMNS)


@triton_jit.jit
def low_rank(  # type: ignore[no-untyped-def]
    left_ptr,
    left_step,
    inside_rows,
    right_ptr,
    right_step,
    inside_columns,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """left [ROWS, RANK] times right [RANK, COLUMNS], in fp32. The pointers are those of the first rank, ``[ROWS, 1]``
    and ``[1, COLUMNS]``; the next rank lies a step on. fp32 is not cut to tf32, which would show in an adapter."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, RANK, RANKS):
        ranks = start + tl.arange(0, RANKS)
        inside = ranks < RANK
        left = tl.load(left_ptr + (ranks * left_step)[None, :], mask=inside_rows[:, None] & inside[None, :], other=0.0)
        right = tl.load(
            right_ptr + (ranks * right_step)[:, None], mask=inside[:, None] & inside_columns[None, :], other=0.0
        )
        sums = tl.dot(left, right, sums, input_precision="ieee")
    return sums


@triton_jit.jit
def raise_largest(largest_ptr, sizes, inside_rows):  # type: ignore[no-untyped-def]
    """Raise each row's largest size in memory to that of this tile. Numbers that are not negative have the order of
    their bits, NaN above all."""
    largest = tl.max(sizes, axis=1).to(tl.int32, bitcast=True)
    tl.atomic_max(largest_ptr, largest, mask=inside_rows, sem="relaxed")
