"""A few rows times NF4 weights that are read in 4 bit: what the next tokens of replies are computed with.

    y[t, n] = Σ_blocks absmax[n, block] · Σ_k∈block x[t, k] · NF4_CODE[index[n, k]]

One row meets each weight once, so such a product takes as long as reading the weights does: half a byte each here, not
the 0.5 + 2 + 2 bytes of a matrix that is dequantised first. What comes after reading, 16 levels looked up for billions
of indices a token, has to be cheaper still; no form of it in Triton is (65 µs where reading takes 15). Here one access
to shared memory turns a byte into the pair of levels that a register of the tensor cores holds (``nf4_rows_cuda.py``).

The sum over a block of 64 is taken over bare levels, in fp32, and multiplied by absmax then. So absmax is never
rounded, and of the levels only 16 roundings to x's dtype remain: all are held times ``GAIN``, at which these are least
(half of what rounding each weight costs), and y is divided by it.

The order of a row's sums is the same whatever rows lie beside it: a reply does not depend on what else is answered at
that time.

In: x [T, K] in bf16 or fp16, T ≤ 64; W an ``NF4Tensor`` [N, K]. Out: y [T, N] in x's dtype or fp32. There is no
gradient: it serves inference.
"""

from __future__ import annotations

from ctypes import c_uint64
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from whippet.kernels import cuda_jit
from whippet.kernels.nf4 import dequantize_nf4
from whippet.kernels.nf4_rounding import BLOCK, NF4_CODE
from whippet.kernels.nf4_rows_cuda import SOURCE
from whippet.kernels.nf4_tensor import NF4Tensor

GROUP = 16
"""Rows of one launch; more go by groups."""
MOST_ROWS = 64
"""More rows are quicker over a matrix that was dequantised, if their results may depend on each other's number."""
GAIN = {torch.bfloat16: 1.436767578125, torch.float16: 1.3662109375}
"""Of multiples of 2⁻¹³ between 1 and 2 the best for normal weights in blocks of 64: the levels' root mean square error
is 3.1e-4 of absmax in bf16 and 3.2e-5 in fp16, where rounding level · absmax makes 6.5e-4 and 8.1e-5."""


class Layout(NamedTuple):
    """How the work is laid out on a multiprocessor."""

    warps: int
    """Share the inputs of 16 outputs."""
    groups: int
    """Of so many warps, each with outputs of its own."""
    stages: int
    """Of 2 KB of weights a warp: one is computed on, the others are on their way."""
    spread: int = 0
    """1: the table takes 64 KB instead of 32, and one instruction finds a place in it."""
    permuted: int = 0
    """Words of four whose levels are not looked up in shared memory but put together by permuting bytes."""

    def shared(self, nested: int, columns: int) -> int:
        """Bytes of dynamic shared memory."""
        stage = 2048 + 128 * (2, 3, 5)[nested]
        return 256 * 128 * (1 + self.spread) + self.groups * self.warps * (self.stages * stage + 2 * 512 * columns)


LAYOUTS = (Layout(4, 4, 2), Layout(8, 2, 2), Layout(8, 1, 2), Layout(4, 1, 2))
"""The first that a GPU's shared memory holds is taken. Of fifteen on an H200 the first is the best for all products of
an 8B model together, with 1 row and with 8 (docs/log.md, 2026-11-25)."""
STATIC = 256 * 4
"""Bytes of shared memory that all layouts use."""


def applies(x_TK: Tensor, weight: NF4Tensor) -> bool:
    """Whether ``nf4_rows`` serves this product: a GPU since Ampere, NVRTC, 1 to 64 rows in 16 bit."""
    return (
        x_TK.ndim == 2 and 0 < len(x_TK) <= MOST_ROWS and x_TK.dtype in GAIN and fits(weight) and cuda_jit.usable(x_TK)
    )


def fits(weight: NF4Tensor) -> bool:
    """Whether rows are whole blocks of 64, their parts lie at addresses that 16 (4) bytes are read from at once, and
    blocks can be counted in 31 bit."""
    whole = len(weight.shape) == 2 and weight.block_size == BLOCK and weight.shape[1] % BLOCK == 0
    aligned = weight.codes.data_ptr() % 16 == 0 and weight.absmax.data_ptr() % 4 == 0
    return whole and aligned and 0 < weight.numel < BLOCK * 2**30


def nf4_rows(x_TK: Tensor, weight: NF4Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return x · Wᵀ [T, N] in ``dtype``: x's (the default) or fp32. ``applies`` must have said yes.

    The first product of a kind compiles for about a second, and cannot be captured in a CUDA graph.
    """
    y_TN = x_TK.new_empty(len(x_TK), weight.shape[0], dtype=dtype or x_TK.dtype)
    nested = _nested(weight)
    for start in range(0, len(x_TK), GROUP):
        group_TK = x_TK[start : start + GROUP]
        layout = _layout(x_TK.device.index, nested, -(-len(group_TK) // 8))
        launch(group_TK, weight, y_TN[start : start + GROUP], layout)
    return y_TN


def nf4_rows_reference(x_TK: Tensor, weight: NF4Tensor) -> Tensor:
    """The definition."""
    return (x_TK.float() @ dequantize_nf4(weight, torch.float32).T).to(x_TK.dtype)


def launch(x_TK: Tensor, weight: NF4Tensor, y_TN: Tensor, layout: Layout) -> None:
    """Write x · Wᵀ into ``y_TN``, contiguous and in x's dtype or fp32."""
    assert y_TN.dtype in (x_TK.dtype, torch.float32) and y_TN.is_contiguous()
    assert x_TK.shape[1] == weight.shape[1] and x_TK.device == weight.device, (x_TK.shape, weight.shape, x_TK.device)
    columns, nested = -(-len(x_TK) // 8), _nested(weight)
    index = x_TK.device.index
    macros, shared = defines(x_TK.dtype, nested, columns, layout), layout.shared(nested, columns)
    run = cuda_jit.kernel("nf4_rows", SOURCE, macros, index, shared)
    blocks = min(-(-weight.shape[0] // 16), _properties(index).multi_processor_count)
    run(blocks, 32 * layout.warps * layout.groups, *arguments(x_TK, weight, y_TN))


def _nested(weight: NF4Tensor) -> int:
    """0: absmax is fp32; 1: doubly quantised, with one offset; 2: with one for each 256 blocks."""
    return 0 if weight.offset is None else 1 + weight.offset.ndim


@cache
def defines(dtype: torch.dtype, nested: int, columns: int, layout: Layout) -> cuda_jit.Defines:
    """Macros of ``SOURCE``. ``columns``: groups of eight rows of x."""
    numbers = {
        "WARPS": layout.warps,
        "GROUPS": layout.groups,
        "STAGES": layout.stages,
        "COLUMNS": columns,
        "PERMUTED": layout.permuted,
        "SPREAD": layout.spread,
    }
    flags = {"NESTED": nested, "BF16": int(dtype == torch.bfloat16)}
    values = {name: str(value) for name, value in (numbers | flags).items()}
    values["GAIN"] = f"{GAIN[dtype]}f"
    halves = (torch.tensor(NF4_CODE) * GAIN[dtype]).to(dtype).view(torch.int16).tolist()
    for plane, shift in (("LOW", 0), ("HIGH", 8)):
        for four in range(4):
            word = sum((half >> shift & 255) << 8 * place for place, half in enumerate(halves[4 * four : 4 * four + 4]))
            values[f"{plane}{four}"] = f"{word:#010x}u"
    return tuple(values.items())


def arguments(x_TK: Tensor, weight: NF4Tensor, y_TN: Tensor) -> tuple[Tensor | int | c_uint64, ...]:
    """Of the kernel."""
    # Rows are read 16 bytes at once.
    if x_TK.stride(1) != 1 or (len(x_TK) > 1 and x_TK.stride(0) % 8) or x_TK.data_ptr() % 16:
        x_TK = x_TK.clone(memory_format=torch.contiguous_format)
    parts = (weight.codes, weight.absmax, weight.nested_absmax, weight.nested_code, weight.offset)
    given = tuple(weight.absmax if part is None else part for part in parts)
    wide, (num_outputs, width) = int(y_TN.dtype == torch.float32), weight.shape
    return (x_TK, c_uint64(x_TK.stride(0)), *given, y_TN, wide, len(x_TK), num_outputs, width // BLOCK)


@cache
def _layout(index: int, nested: int, columns: int) -> Layout:
    most = _properties(index).shared_memory_per_block_optin
    return next(layout for layout in LAYOUTS if layout.shared(nested, columns) + STATIC <= most)


@cache
def _properties(index: int) -> Any:
    return torch.cuda.get_device_properties(index)
