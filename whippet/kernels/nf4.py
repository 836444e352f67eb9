"""Four-bit NormalFloat: quantise and dequantise weights, bit for bit as bitsandbytes does.

A tensor is read in row-major order in blocks of 64. A block is divided by its largest absolute value (absmax), and each
quotient becomes the index of the nearest of 16 levels, the quantiles of a normal distribution (Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314); two indices share a byte, the first in its high half:

    w ≈ NF4_CODE[index] · absmax[block]

With double quantisation absmax is itself held in 8 bit: less its mean (the offset), in blocks of 256, against 256
dynamic levels: absmax ≈ nested_code[absmax8] · nested_absmax[block of 256] + offset. That is 4.127 bit a weight.

In: fp32, bf16 or fp16 weights, on any device. Out: NF4Tensor, and back to any of the three dtypes.

Where bitsandbytes quantises differently on its two backends, this file does what the backend of the tensor's device
does (``nf4_rounding.py``). Dequantising follows the formula, whatever the CPU (``docs/numerics.md``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.kernels import triton_jit
from whippet.kernels.nf4_rounding import BLOCK, NESTED_BLOCK, NF4_CODE, dynamic_code, nearest_8bit, nearest_nf4
from whippet.kernels.nf4_tensor import NF4Tensor, join_rows, plain_absmax, slice_rows
from whippet.kernels.triton_jit import tl

__all__ = [
    "BLOCK",
    "NESTED_BLOCK",
    "NF4_CODE",
    "NF4Tensor",
    "dequantize_nf4",
    "join_rows",
    "plain_absmax",
    "quantize_nf4",
    "slice_rows",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 1 << 22
"""Weights that are quantised at once: about 20 bytes of scratch each, and whole blocks of both sizes."""
CPU_CHUNK = 1 << 16
"""Bytes that the CPU dequantises at once: the fp32 scratch stays in a core's cache."""
WORDS = 1024
"""Words of eight weights that one program of the GPU dequantises."""


def quantize_nf4(weight: Tensor, *, double: bool = True, name: str = "weight") -> NF4Tensor:
    """Quantise a contiguous or strided tensor of any shape; ``double`` also quantises absmax.

    Scratch is bounded (about 100 MB) whatever the size. Raises ModelError (a ValueError), naming ``name``, for a dtype
    other than fp32, bf16, fp16 and for NaN or infinity.
    """
    if weight.dtype not in DTYPES:
        raise ModelError(f"{name}: NF4 takes fp32, bf16 or fp16 weights, met {weight.dtype}")
    flat = weight.detach().reshape(-1)
    pieces = [_quantize_blocks(piece) for piece in flat.split(CHUNK)]
    codes = torch.cat([codes for codes, _ in pieces]) if pieces else flat.new_empty(0, dtype=torch.uint8)
    absmax = torch.cat([absmax for _, absmax in pieces]) if pieces else flat.new_empty(0, dtype=torch.float32)
    if not bool(absmax.isfinite().all()):
        block = int(absmax.isfinite().logical_not().nonzero()[0])
        raise ModelError(
            f"{name}: NF4 needs finite weights, met NaN or infinity among weights {block * BLOCK} to "
            f"{min((block + 1) * BLOCK, flat.numel()) - 1} of {flat.numel()}"
        )
    plain = NF4Tensor(codes, absmax, tuple(weight.shape), weight.dtype)
    return _quantize_absmax(plain, name) if double else plain


def dequantize_nf4(weight: NF4Tensor, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """The weights in ``dtype`` (by default the one they had), written into ``out`` if that is given.

    The product with absmax is formed in fp32 and rounded once, to nearest even. ``out``: of ``dtype``, contiguous with
    as many numbers, or of the weight's shape with gaps between its rows.
    """
    dtype = dtype or weight.dtype
    if out is None:
        out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    out = out.view(weight.shape) if out.is_contiguous() else out
    assert out.dtype == dtype and out.shape == weight.shape, (out.shape, out.dtype)
    if triton_jit.usable(weight.codes) and by_words(weight, out):
        dequantize_triton(weight, out)
    elif out.is_contiguous():
        dequantize_torch(weight, out.view(-1))
    else:
        out.copy_(dequantize_nf4(weight, dtype))
    return out


def _quantize_blocks(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Packed codes and fp32 absmax of a run of whole blocks (the last of a tensor may be shorter)."""
    indices, absmax = nearest_nf4(flat.float())
    if len(indices) % 2:
        indices = torch.cat([indices, indices.new_full((1,), NF4_CODE.index(0.0))])
    return (indices[::2] << 4) | indices[1::2], absmax


def _quantize_absmax(plain: NF4Tensor, name: str) -> NF4Tensor:
    offset = plain.absmax.mean()
    if plain.numel and not bool(offset.isfinite()):
        raise ModelError(f"{name}: weights up to {float(plain.absmax.max()):.3g} are too large to be quantised doubly")
    absmax8, nested_absmax = nearest_8bit(plain.absmax - offset)
    code = dynamic_code(plain.device)
    return replace(plain, absmax=absmax8, nested_absmax=nested_absmax, nested_code=code, offset=offset)


def dequantize_torch(weight: NF4Tensor, flat: Tensor) -> None:
    """The definition, a chunk at a time: look a byte's two levels up, multiply, round into ``flat``."""
    codes, absmax, block_size = weight.codes, plain_absmax(weight), weight.block_size
    step = CPU_CHUNK if codes.device.type == "cpu" else CHUNK
    pairs = _pairs(codes.device)
    for start, stop in pairwise([*range(0, len(codes), step), len(codes)]):
        levels = pairs[codes[start:stop].int()].view(torch.float32)
        target = flat[2 * start : 2 * stop]
        scales = absmax[2 * start // block_size : -(-2 * stop // block_size)]
        whole = len(target) // block_size * block_size
        torch.mul(
            levels[:whole].view(-1, block_size),
            scales[: whole // block_size].view(-1, 1),
            out=target[:whole].view(-1, block_size),
        )
        torch.mul(levels[whole : len(target)], scales[whole // block_size :], out=target[whole:])


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two fp32 levels of each byte as one 64-bit word [256], so that a look-up moves eight bytes."""
    code = torch.tensor(NF4_CODE, dtype=torch.float32)
    byte = torch.arange(256)
    return torch.stack([code[byte >> 4], code[byte & 15]], dim=1).view(torch.int64).view(-1).to(device)


@triton_jit.jit
def _dequantize_kernel(  # type: ignore[no-untyped-def]
    words_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    out_ptr,
    num_words,
    offset_stride,
    row_gap,
    NESTED: tl.constexpr,
    NESTED_SIZE: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    WORDS: tl.constexpr,
):
    # Only what is the same for a whole program is 64 bit wide; a thread reads 4 bytes and writes 16.
    first = tl.program_id(0).to(tl.int64) * WORDS
    words = tl.arange(0, WORDS)
    exists = words < tl.minimum(num_words - first, WORDS).to(tl.int32)
    word = tl.load(words_ptr + first + words, mask=exists, other=0)
    block = first // BLOCK_WORDS
    absmax = tl.load(absmax_ptr + block + words // BLOCK_WORDS, mask=exists, other=0)
    if NESTED:
        group = block // NESTED_SIZE
        scale = tl.load(nested_absmax_ptr + group)
        offset = tl.load(offset_ptr + group * offset_stride)
        absmax = tl.load(nested_code_ptr + absmax.to(tl.int32)) * scale + offset
    places = tl.arange(0, 8)
    # The first weight of a byte is in its high half.
    index = (word[:, None] >> ((places ^ 1) * 4)[None, :]) & 15
    weights = tl.load(levels_ptr + index) * absmax[:, None]
    starts = first * 8 + words * 8
    if ROW_WORDS:  # rows that gaps follow
        starts += (first + words) // ROW_WORDS * row_gap
    targets = out_ptr + starts[:, None] + places[None, :]
    tl.store(targets, weights.to(out_ptr.dtype.element_ty), mask=exists[:, None])


def by_words(weight: NF4Tensor, out: Tensor) -> bool:
    """Whether the codes can be read in words of eight weights, each inside one block and one row: nearly always."""
    whole = weight.numel % 8 == 0 and weight.codes.data_ptr() % 4 == 0 and WORDS % (weight.block_size // 8) == 0
    return whole and (out.is_contiguous() or (out.ndim == 2 and out.stride(1) == 1 and out.shape[1] % 8 == 0))


def dequantize_triton(weight: NF4Tensor, out: Tensor) -> None:
    """As ``dequantize_torch``, in one pass; products and sums are not fused, so that each is rounded as there."""
    nested = weight.nested_absmax is not None
    block_words = weight.block_size // 8
    # The blocks of one program share one nested scale.
    words = min(WORDS, NESTED_BLOCK * block_words)
    num_words = weight.numel // 8
    if num_words:
        _dequantize_kernel[(-(-num_words // words),)](
            weight.codes.view(torch.int32),
            levels(weight.device),
            weight.absmax,
            weight.nested_absmax if nested else weight.absmax,
            weight.nested_code if nested else weight.absmax,
            weight.offset if nested else weight.absmax,
            out,
            num_words,
            int(weight.offset is not None and weight.offset.ndim),
            0 if out.is_contiguous() else out.stride(0) - out.shape[1],
            NESTED=nested,
            NESTED_SIZE=NESTED_BLOCK,
            BLOCK_WORDS=block_words,
            ROW_WORDS=0 if out.is_contiguous() else out.shape[1] // 8,
            WORDS=words,
            enable_fp_fusion=False,
        )


@cache
def levels(device: torch.device) -> Tensor:
    """``NF4_CODE``, fp32 [16], on ``device``."""
    return torch.tensor(NF4_CODE, dtype=torch.float32, device=device)
