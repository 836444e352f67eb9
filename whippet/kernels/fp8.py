"""Products over FP8 weights, computed in FP8: forward, and gradients of inputs.

    y = x · Wᵀ    with x quantised by rows, W held so (``fp8_tensor.py``):    y[t, n] = a[t] · s[n] · Σₖ x̂[t, k] ŵ[n, k]
    dx = g · W = (g · s) · ŵ    with g · s quantised by rows:                 dx[t, k] = b[t] · Σₙ ĝ[t, n] ŵ[n, k]

The scales of W lie along the sum of the second product, so they go into g before that is quantised, and the second
product needs no scales for its columns. The tensor cores take both operands with the summed dimension contiguous: the
codes of W are transposed for the second product, each time, by one pass at the speed of a copy (``transposed``), and no
second layout is held.

Rounding x or g to FP8 is a pass over them, which an op that has their rows in its hands can spare; and one that has
tiles of them can spare half of it, the search for each row's largest number. So products take ``rows`` from who has
them, and a ``Handover`` brings those of a gradient from one op's backward pass to the next one's.

In: x [T, K], g [T, N] in the compute dtype; W [N, K] an ``FP8Tensor``, or an ``NF4Tensor`` whose codes become FP8 for
each product and are dropped (``nf4_fp8.py``: the transposed ones in that same pass). Out: y [T, N], dx [T, K] in
that dtype. The definition multiplies the same quantised numbers in fp32; so it is done on a CPU, and for shapes that
the tensor cores refuse. Only bf16 activations are rounded to FP8 (``applies``): who asks for fp32 gets the weights'
exact product.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from functools import cache
from typing import TypeGuard

import torch
from torch import Tensor

from whippet.kernels import nf4_fp8, triton_jit
from whippet.kernels.fp8_tensor import (
    FP8,
    LARGEST,
    LEAST,
    FP8Tensor,
    dequantize_fp8,
    join_rows,
    quantize_fp8,
    rows_torch,
)
from whippet.kernels.nf4_tensor import NF4Tensor
from whippet.kernels.tiles import tile_of
from whippet.kernels.triton_jit import tl

__all__ = [
    "FP8",
    "LARGEST",
    "LEAST",
    "Added",
    "FP8Tensor",
    "Handover",
    "Weight",
    "applies",
    "dequantize_fp8",
    "empty_rows",
    "input_gradient",
    "join_rows",
    "no_largest",
    "product",
    "quantize_fp8",
    "quantize_rows",
    "rows_by_kernels",
    "rows_of_largest",
    "rows_torch",
    "scales_of",
    "supported",
    "transposed",
    "wanted",
]

Weight = FP8Tensor | NF4Tensor
"""What ``wanted`` says yes to."""

ALIGNED = 16
"""Rows and columns of a weight must be multiples of this for the tensor cores."""
WIDEST = 32768
"""Columns up to which a program holds its row in registers; a wider one is read twice."""
WIDE_BLOCK = 8192
ROWS, COLUMNS, WARPS = 16, 256, 8
"""Of one program that is told the largest numbers: 16 a thread, and eight rows share the scales of columns, which are
twice as many bytes as a row itself."""
TILE = 32
"""Words of four bytes along a side of what one program transposes: 128 bytes are one line of memory."""


@cache
def supported(device: torch.device) -> bool:
    """Whether FP8 products with scales by rows run there: NVIDIA GPUs from Hopper (9.0) on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def applies(x_TK: Tensor) -> bool:
    """Whether products of ``x_TK`` with such weights are computed in FP8; else the weights are dequantised for them."""
    return x_TK.dtype == torch.bfloat16 and (supported(x_TK.device) or not x_TK.is_cuda)


def wanted(weight: object) -> TypeGuard[Weight]:
    """Whether ``weight`` is for products in FP8: held so, or in NF4 with what its rows need for it."""
    return isinstance(weight, FP8Tensor) or (isinstance(weight, NF4Tensor) and weight.fp8_rows is not None)


def scales_of(weight: Weight) -> Tensor:
    """fp32 [N]: those of its rows."""
    return weight.scales if isinstance(weight, FP8Tensor) else nf4_fp8.scales_of(weight)


def product(x_TK: Tensor, weight: Weight, rows: FP8Tensor | None = None) -> Tensor:
    """x · Wᵀ [T, N] in x's dtype. ``rows``: x as ``quantize_rows(x)`` gives it, if somebody has done that."""
    held = weight if isinstance(weight, FP8Tensor) else nf4_fp8.codes_of(weight)
    return _multiplied(quantize_rows(x_TK) if rows is None else rows, held)


def input_gradient(grad_TN: Tensor, weight: Weight, rows: FP8Tensor | None = None) -> Tensor:
    """g · W [T, K] in g's dtype. ``rows``: ``quantize_rows(g, scales_of(weight))``, if somebody has done that."""
    rows = quantize_rows(grad_TN, scales_of(weight)) if rows is None else rows
    turned_KN = transposed(weight.codes) if isinstance(weight, FP8Tensor) else nf4_fp8.turned_codes_of(weight)
    return _multiplied(rows, FP8Tensor(turned_KN, _ones(weight.device, weight.shape[1]), weight.dtype))


_made_ones: dict[tuple[torch.device, int], Tensor] = {}


def _ones(device: torch.device, size: int) -> Tensor:
    """Ones in fp32, nobody's to write to: made once, not by a launch each time."""
    held = _made_ones.get((device, size))
    if held is None:
        held = torch.ones(size, dtype=torch.float32, device=device)
        # What a CUDA graph makes holds values only once it is replayed, and lies in the graph's own memory.
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            _made_ones[device, size] = held
    return held


Added = tuple[Tensor, Tensor]
"""u [T, R] and B [n, R] of n outputs, to which u · Bᵀ is to be added."""


class Handover:
    """What goes between a product x · Wᵀ and the op that reads it, beside the numbers; each is given the same one in
    the forward pass.

    Back: the gradient of the product as g · s in FP8, from that op's backward pass (which forms g, and leaves it here)
    to the product's own (which takes it). Forth, if it ``defers``: what adapters add to each half of the product's
    outputs. The product is left without it, and that op, which passes over the product anyway, adds it in place.
    """

    def __init__(self, weight: Weight, *, defers: bool = False) -> None:
        self.scales_N, self.defers = scales_of(weight), defers
        self._left: tuple[Tensor, int, FP8Tensor] | None = None
        self._added: tuple[int, torch.Size, list[Added]] | None = None

    def leave_added(self, y_TN: Tensor, halves: list[Added]) -> None:
        """``y_TN`` lacks what ``halves`` give. Who leaves this has seen that this ``defers``."""
        assert self.defers and self._added is None
        self._added = y_TN.data_ptr(), y_TN.shape, halves

    def take_added(self, y_TN: Tensor) -> list[Added] | None:
        """What the halves of ``y_TN`` lack, once; None if they lack nothing."""
        if self._added is None:
            return None
        (address, shape, halves), self._added = self._added, None
        # Another tensor would be changed in its place, and that one never completed.
        assert address == y_TN.data_ptr() and shape == y_TN.shape, "not the product that lacks it"
        return halves

    def leave(self, grad_TN: Tensor, rows: FP8Tensor) -> None:
        """``rows`` is ``quantize_rows(grad_TN, self.scales_N)``, and ``grad_TN`` is all that the product's output
        gets."""
        self._left = grad_TN, grad_TN._version, rows

    def take(self, grad_TN: Tensor) -> FP8Tensor | None:
        """What was left, once; None if nothing was, or if it was for another gradient, as where autograd has added
        one to it."""
        if self._left is None:
            return None
        (left_TN, version, rows), self._left = self._left, None
        same = left_TN.data_ptr() == grad_TN.data_ptr() and left_TN.shape == grad_TN.shape
        return rows if same and grad_TN._version == version and left_TN.stride() == grad_TN.stride() else None


def _multiplied(left: FP8Tensor, right: FP8Tensor) -> Tensor:
    """left · rightᵀ, in left's dtype."""
    fits = len(left.codes) and not any(side % ALIGNED for side in right.shape)
    if fits and left.dtype == torch.bfloat16 and supported(left.device):
        return torch._scaled_mm(
            left.codes,
            right.codes.T,
            scale_a=left.scales[:, None],
            scale_b=right.scales[None, :],
            out_dtype=left.dtype,
            use_fast_accum=True,
        )
    return (dequantize_fp8(left, torch.float32) @ dequantize_fp8(right, torch.float32).T).to(left.dtype)


@triton_jit.jit
def factors(absmax, LARGEST: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """What makes codes of a row's numbers, and what makes numbers of its codes: the arithmetic of ``rows_torch``."""
    absmax = tl.maximum(absmax, LEAST)
    return tl.math.div_rn(LARGEST + tl.zeros_like(absmax), absmax), absmax * (1 / LARGEST)


@triton_jit.jit
def _numbers(x_ptr, scale_ptr, columns, width, SCALED: tl.constexpr):  # type: ignore[no-untyped-def]
    x = tl.load(x_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    if SCALED:
        # Every row wants the same scales, as many bytes as a row or more: they are to stay near.
        x *= tl.load(scale_ptr + columns, mask=columns < width, other=0.0, eviction_policy="evict_last").to(tl.float32)
    return x


@triton_jit.jit
def _rows_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    scale_ptr,
    codes_ptr,
    scales_ptr,
    x_stride,
    width,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    SCALED: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    codes_ptr += row * width
    columns = tl.arange(0, BLOCK)
    if WHOLE:
        x = _numbers(x_ptr, scale_ptr, columns, width, SCALED)
        up, down = factors(tl.max(tl.abs(x), axis=0), LARGEST, LEAST)
        tl.store(codes_ptr + columns, (x * up).to(codes_ptr.dtype.element_ty), mask=columns < width)
    else:
        largest = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            largest = tl.maximum(largest, tl.abs(_numbers(x_ptr, scale_ptr, start + columns, width, SCALED)))
        up, down = factors(tl.max(largest, axis=0), LARGEST, LEAST)
        for start in range(0, width, BLOCK):
            x = _numbers(x_ptr, scale_ptr, start + columns, width, SCALED)
            tl.store(codes_ptr + start + columns, (x * up).to(codes_ptr.dtype.element_ty), mask=start + columns < width)
    tl.store(scales_ptr + row, down)


def quantize_rows(x_TK: Tensor, scale_K: Tensor | None = None) -> FP8Tensor:
    """x, or x · scale_K, in FP8 by rows."""
    return (rows_triton if rows_by_kernels(x_TK) else rows_torch)(x_TK, scale_K)


def rows_by_kernels(x_TK: Tensor) -> bool:
    """Whether Triton's kernels can make FP8 where ``x_TK`` lies: they cannot on a GPU that knows no such numbers."""
    return triton_jit.usable(x_TK) and (supported(x_TK.device) or not x_TK.is_cuda)


def empty_rows(x_TK: Tensor, width: int) -> FP8Tensor:
    """Memory for as many rows as ``x_TK`` has."""
    codes = torch.empty(len(x_TK), width, dtype=FP8, device=x_TK.device)
    return FP8Tensor(codes, torch.empty(len(x_TK), dtype=torch.float32, device=x_TK.device), x_TK.dtype)


def rows_triton(x_TK: Tensor, scale_K: Tensor | None = None) -> FP8Tensor:
    """As ``rows_torch``, to the bit, in one pass (two where a row is wide)."""
    x_TK = x_TK if x_TK.stride(-1) == 1 else x_TK.contiguous()
    num_rows, width = x_TK.shape
    out = empty_rows(x_TK, width)
    whole = width <= WIDEST
    block = triton_jit.power_of_two(width) if whole else WIDE_BLOCK
    if num_rows:
        _rows_kernel[(num_rows,)](
            x_TK,
            x_TK if scale_K is None else scale_K,
            out.codes,
            out.scales,
            x_TK.stride(0),
            width,
            LARGEST=LARGEST,
            LEAST=LEAST,
            SCALED=scale_K is not None,
            WHOLE=whole,
            BLOCK=block,
            num_warps=warps(block),
        )
    return out


@triton_jit.jit
def _rows_of_largest_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    scale_ptr,
    largest_ptr,
    codes_ptr,
    scales_ptr,
    num_rows,
    width,
    x_stride,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, columns = tile_of(tl.program_id(0), width, ROWS, COLUMNS)
    inside_rows, inside_columns = rows < num_rows, columns < width
    inside = inside_rows[:, None] & inside_columns[None, :]
    wide_rows = rows.to(tl.int64)[:, None]
    largest = tl.load(largest_ptr + rows, mask=inside_rows, other=0).to(tl.float32, bitcast=True)
    up, down = factors(largest, LARGEST, LEAST)
    x = tl.load(x_ptr + wide_rows * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        x *= tl.load(scale_ptr + columns, mask=inside_columns, other=0.0)[None, :]
    codes = (x * up[:, None]).to(codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + wide_rows * width + columns[None, :], codes, mask=inside)
    if tl.program_id(0) % tl.cdiv(width, COLUMNS) == 0:  # once a row
        tl.store(scales_ptr + rows, down, mask=inside_rows)


def no_largest(x_TK: Tensor) -> Tensor:
    """Where kernels raise the largest number of each row (``tiles.raise_largest``): int32 [T], the bits of fp32."""
    return torch.zeros(len(x_TK), dtype=torch.int32, device=x_TK.device)


def rows_of_largest(x_TK: Tensor, largest_T: Tensor, scale_K: Tensor | None = None) -> FP8Tensor:
    """As ``rows_torch``, to the bit, in one pass by tiles: ``largest_T`` is what ``no_largest`` gave, raised to each
    row's largest |x|, or |x · scale_K|."""
    assert x_TK.stride(1) == 1
    num_rows, width = x_TK.shape
    out = empty_rows(x_TK, width)
    if x_TK.numel():
        _rows_of_largest_kernel[(-(-num_rows // ROWS) * -(-width // COLUMNS),)](
            x_TK,
            x_TK if scale_K is None else scale_K,
            largest_T,
            out.codes,
            out.scales,
            num_rows,
            width,
            x_TK.stride(0),
            LARGEST=LARGEST,
            LEAST=LEAST,
            SCALED=scale_K is not None,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )
    return out


def warps(block: int) -> int:
    """Threads for 32 numbers each."""
    return min(max(block // 1024, 1), 32)


@triton_jit.jit
def _transpose_kernel(codes_ptr, out_ptr, row_words, column_words, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    # Words of four bytes: fewer and wider accesses, and four by four bytes are turned inside registers.
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    words = tl.program_id(0) * TILE + tl.arange(0, TILE)
    source = codes_ptr + rows[:, None] * (4 * row_words) + words[None, :]
    inside = (rows < column_words)[:, None] & (words < row_words)[None, :]
    first = tl.load(source, mask=inside, other=0)
    second = tl.load(source + row_words, mask=inside, other=0)
    third = tl.load(source + 2 * row_words, mask=inside, other=0)
    fourth = tl.load(source + 3 * row_words, mask=inside, other=0)
    # The even and the odd columns of two rows, the lower row in the lower byte of each half.
    even = (first & 0x00FF00FF) | ((second & 0x00FF00FF) << 8)
    odd = ((first >> 8) & 0x00FF00FF) | (second ^ (second & 0x00FF00FF))
    even_below = (third & 0x00FF00FF) | ((fourth & 0x00FF00FF) << 8)
    odd_below = ((third >> 8) & 0x00FF00FF) | (fourth ^ (fourth & 0x00FF00FF))
    target = out_ptr + words[:, None] * (4 * column_words) + rows[None, :]
    inside = (words < row_words)[:, None] & (rows < column_words)[None, :]
    tl.store(target, tl.trans((even & 0xFFFF) | (even_below << 16)), mask=inside)
    tl.store(target + column_words, tl.trans((odd & 0xFFFF) | (odd_below << 16)), mask=inside)
    even_high, odd_high = even_below ^ (even_below & 0xFFFF), odd_below ^ (odd_below & 0xFFFF)
    tl.store(target + 2 * column_words, tl.trans(((even >> 16) & 0xFFFF) | even_high), mask=inside)
    tl.store(target + 3 * column_words, tl.trans(((odd >> 16) & 0xFFFF) | odd_high), mask=inside)


def transposed(codes_NK: Tensor) -> Tensor:
    """The same codes [K, N], contiguous."""
    num_rows, num_columns = codes_NK.shape
    whole_words = num_rows % 4 == 0 and num_columns % 4 == 0 and codes_NK.is_contiguous()
    if not triton_jit.usable(codes_NK) or not whole_words or not codes_NK.numel():
        return codes_NK.view(torch.uint8).T.contiguous().view(FP8)
    assert codes_NK.numel() < 2**33, codes_NK.shape  # words are counted in 32 bit
    out_KN = torch.empty(num_columns, num_rows, dtype=FP8, device=codes_NK.device)
    row_words, column_words = num_columns // 4, num_rows // 4
    grid = (-(-row_words // TILE), -(-column_words // TILE))
    words = codes_NK.view(torch.int32), out_KN.view(torch.int32)
    # 32 words a thread.
    _transpose_kernel[grid](*words, row_words, column_words, TILE=TILE, num_warps=max(TILE * TILE // 256, 1))
    return out_KN
