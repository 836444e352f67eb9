"""NF4 weights as FP8 codes, for products that are computed in FP8 over weights that are held in 4 bit.

    w = NF4_CODE[index] · absmax[block]        code[n, k] = e4m3(w[n, k] · (448 / absmax[n]))
    scale[n] = absmax[n] / 448

w is the NF4 weight in fp32 and absmax[n] the largest |w| of row n, so these are the codes and scales that
``quantize_fp8`` gives for the dequantised matrix, bit for bit: training over them is training over ``base = "fp8"`` of
the same NF4 checkpoint, in the memory of NF4. A weight is rounded twice, by 9 % to NF4 and by 2.6 % to FP8 (root mean
square).

The rows' largest numbers are found once (``with_rows``). The codes are made for each product and dropped: as they lie
[N, K] for x · Wᵀ, and turned [K, N] for g · W, in one pass each that reads half a byte a weight and writes one.

In: an ``NF4Tensor`` [N, K]. Out: ``FP8Tensor`` [N, K], or codes [K, N].
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.kernels import triton_jit
from whippet.kernels.fp8_tensor import FP8, LARGEST, LEAST, FP8Tensor, rows_torch
from whippet.kernels.nf4 import WORDS, by_words, dequantize_nf4, levels
from whippet.kernels.nf4_rounding import NESTED_BLOCK
from whippet.kernels.nf4_tensor import NF4Tensor, slice_rows
from whippet.kernels.triton_jit import tl

CHUNK = 1 << 24
"""Weights whose largest numbers are looked for at once: 8 bytes of scratch each."""
ROWS, ROW_WORDS, WARPS = 128, 8, 4
"""Of one program that turns: 64 rows are 64 bytes of a line of the result, 8 words a block of 64 weights."""


def with_rows(weight: NF4Tensor, *, name: str = "weight") -> NF4Tensor:
    """The same weights, and what their rows need to become FP8. ModelError, naming ``name``, if a row is not finite."""
    if len(weight.shape) != 2:
        raise ModelError(f"{name}: FP8 takes a matrix, met NF4 of shape {list(weight.shape)}")
    num_rows, width = weight.shape
    # Cuts at multiples of 64 rows part no block, whatever the width.
    step = max(1, CHUNK // max(1, width) // weight.block_size) * weight.block_size
    absmax_N = torch.zeros(num_rows, dtype=torch.float32, device=weight.device)
    for start in range(0, num_rows, step):
        part = slice_rows(weight, start, min(start + step, num_rows))
        if part.numel:
            absmax_N[start : start + step] = dequantize_nf4(part, torch.float32).abs().amax(1)
    if not bool(absmax_N.isfinite().all()):
        row = int(absmax_N.isfinite().logical_not().nonzero()[0])
        raise ModelError(f"{name}: FP8 needs finite weights, met NaN or infinity in row {row} of {num_rows}")
    absmax_N = absmax_N.clamp_min(LEAST)
    return replace(weight, fp8_rows=torch.stack([absmax_N, absmax_N * (1 / LARGEST)]))


def scales_of(weight: NF4Tensor) -> Tensor:
    """fp32 [N]: what the codes of each row are to be multiplied with."""
    assert weight.fp8_rows is not None
    return weight.fp8_rows[1]


def codes_of(weight: NF4Tensor) -> FP8Tensor:
    """The codes as they lie, [N, K], and their scales."""
    if not _in_words(weight):
        return FP8Tensor(rows_torch(dequantize_nf4(weight, torch.float32)).codes, scales_of(weight), weight.dtype)
    return FP8Tensor(_codes_triton(weight), scales_of(weight), weight.dtype)


def turned_codes_of(weight: NF4Tensor) -> Tensor:
    """The same codes [K, N], contiguous."""
    if not _in_words(weight) or weight.shape[1] % 8:
        return codes_of(weight).codes.view(torch.uint8).T.contiguous().view(FP8)
    return _turned_triton(weight)


def _in_words(weight: NF4Tensor) -> bool:
    # As in ``nf4.py``; words are counted in 32 bit. And Triton makes FP8 only on cards that have it.
    able = not weight.codes.is_cuda or torch.cuda.get_device_capability(weight.device) >= (8, 9)
    in_words = by_words(weight, weight.codes) and weight.shape[1] % 8 == 0
    return triton_jit.usable(weight.codes) and able and in_words and 0 < weight.numel < 2**33


@triton_jit.jit
def _up(largest_ptr, rows, inside, LARGEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """What makes codes of rows' numbers: the arithmetic of ``rows_torch``."""
    largest = tl.load(largest_ptr + rows, mask=inside, other=1.0)
    return tl.math.div_rn(LARGEST + tl.zeros_like(largest), largest)


@triton_jit.jit
def _codes_kernel(  # type: ignore[no-untyped-def]
    words_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    largest_ptr,
    out_ptr,
    num_words,
    offset_stride,
    LARGEST: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_SIZE: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    WORDS: tl.constexpr,
):
    first = tl.program_id(0) * WORDS
    words = tl.arange(0, WORDS)
    exists = words < num_words - first
    word = tl.load(words_ptr + first + words, mask=exists, other=0)
    block = first // BLOCK_WORDS
    absmax = tl.load(absmax_ptr + block + words // BLOCK_WORDS, mask=exists, other=0)
    if NESTED:
        # The blocks of one program share one nested scale.
        group = block // NESTED_SIZE
        offset = tl.load(offset_ptr + group * offset_stride)
        absmax = tl.load(nested_code_ptr + absmax.to(tl.int32)) * tl.load(nested_absmax_ptr + group) + offset
    up = _up(largest_ptr, first // ROW_WORDS + (first % ROW_WORDS + words) // ROW_WORDS, exists, LARGEST)
    places = tl.arange(0, 8)
    index = (word[:, None] >> ((places ^ 1) * 4)[None, :]) & 15
    weights = tl.load(levels_ptr + index) * absmax[:, None] * up[:, None]
    targets = out_ptr + first.to(tl.int64) * 8 + (words * 8)[:, None] + places[None, :]
    tl.store(targets, weights.to(out_ptr.dtype.element_ty), mask=exists[:, None])


def _codes_triton(weight: NF4Tensor) -> Tensor:
    out_NK = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    num_words = weight.numel // 8
    words = min(WORDS, NESTED_BLOCK * weight.block_size // 8)
    _codes_kernel[(-(-num_words // words),)](
        *_source(weight),
        out_NK,
        num_words,
        _offset_stride(weight),
        LARGEST=LARGEST,
        NESTED=weight.nested_absmax is not None,
        NESTED_SIZE=NESTED_BLOCK,
        BLOCK_WORDS=weight.block_size // 8,
        ROW_WORDS=weight.shape[1] // 8,
        WORDS=words,
        enable_fp_fusion=False,
    )
    return out_NK


@triton_jit.jit
def _turned_kernel(  # type: ignore[no-untyped-def]
    words_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    largest_ptr,
    out_ptr,
    num_rows,
    row_words,
    offset_stride,
    LARGEST: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_SIZE: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    inside_rows, inside_columns = rows < num_rows, columns < row_words
    inside = inside_rows[:, None] & inside_columns[None, :]
    place = rows[:, None] * row_words + columns[None, :]
    word = tl.load(words_ptr + place, mask=inside, other=0)
    block = place // BLOCK_WORDS
    absmax = tl.load(absmax_ptr + block, mask=inside, other=0)
    if NESTED:
        group = block // NESTED_SIZE
        offset = tl.load(offset_ptr + group * offset_stride, mask=inside, other=0.0)
        nested = tl.load(nested_absmax_ptr + group, mask=inside, other=0.0)
        absmax = tl.load(nested_code_ptr + absmax.to(tl.int32)) * nested + offset
    up = _up(largest_ptr, rows, inside_rows, LARGEST)
    index = (word[:, :, None] >> ((tl.arange(0, 8) ^ 1) * 4)[None, None, :]) & 15
    weights = tl.load(levels_ptr + index) * absmax[:, :, None] * up[:, None, None]
    codes = tl.trans(tl.reshape(weights.to(out_ptr.dtype.element_ty), [ROWS, WORDS * 8]))
    places = tl.program_id(1) * WORDS * 8 + tl.arange(0, WORDS * 8)
    targets = out_ptr + places.to(tl.int64)[:, None] * num_rows + rows[None, :]
    tl.store(targets, codes, mask=(places < row_words * 8)[:, None] & inside_rows[None, :])


def _turned_triton(weight: NF4Tensor) -> Tensor:
    num_rows, width = weight.shape
    out_KN = torch.empty(width, num_rows, dtype=FP8, device=weight.device)
    row_words = width // 8
    _turned_kernel[(-(-num_rows // ROWS), -(-row_words // ROW_WORDS))](
        *_source(weight),
        out_KN,
        num_rows,
        row_words,
        _offset_stride(weight),
        LARGEST=LARGEST,
        NESTED=weight.nested_absmax is not None,
        NESTED_SIZE=NESTED_BLOCK,
        BLOCK_WORDS=weight.block_size // 8,
        ROWS=ROWS,
        WORDS=ROW_WORDS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return out_KN


def _source(weight: NF4Tensor) -> tuple[Tensor | None, ...]:
    """What kernels read: words, levels, absmax and what it is nested in, and the rows' largest numbers."""
    assert weight.fp8_rows is not None
    nested = weight.nested_absmax is not None
    return (
        weight.codes.view(torch.int32),
        levels(weight.device),
        weight.absmax,
        weight.nested_absmax if nested else weight.absmax,
        weight.nested_code if nested else weight.absmax,
        weight.offset if nested else weight.absmax,
        weight.fp8_rows[0],
    )


def _offset_stride(weight: NF4Tensor) -> int:
    return int(weight.offset is not None and weight.offset.ndim)
