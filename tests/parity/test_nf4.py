"""NF4 against bitsandbytes on the CPU: codes, absmax, double quantisation and dequantisation, bit for bit.

What is held is the definition: code · absmax in fp32, rounded once, to nearest even. With AVX512 the library's native
kernel (dequantizeBlockwise4bitCpu in its csrc/cpu_ops.cpp, met in 0.50.2) departs from it in two ways, so that its
results depend on the CPU. Ours do not, and the tests say exactly how far the kernel may go:

- Rows of a multiple of 16 weights that is none of 64: it takes row r's absmax from r · (width // 64) on, though blocks
  run on from row to row. So it scales by other blocks' absmax, in every dtype (8.5 of the 10 million hard values in
  rows of 4000). Its answer for the same codes in one row is right, and is what ours is compared with.
- bf16: it rounds with VCVTNEPS2BF16, which takes subnormal fp32 for zero (https://felixcloutier.com/x86/vcvtneps2bf16).
  Its scalar loop and its Python fallback keep them, so ours is compared with its fp32, rounded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from whippet.kernels.nf4 import BLOCK, NF4_CODE, NF4Tensor, dequantize_nf4, quantize_nf4

functional = pytest.importorskip("bitsandbytes.functional")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """bitsandbytes compiles its fallbacks, which takes longer than all of these tests."""
    with torch.compiler.set_stance("force_eager"):
        yield


def hard_values(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Blocks at scales from subnormal to 2^90, with ties, zeros of both signs and blocks of zeros."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(-(-count // BLOCK), BLOCK, generator=generator)
    scales = torch.randint(-140, 90, (len(blocks), 1), generator=generator).float().exp2()
    common = torch.rand(len(blocks), 1, generator=generator) < 0.75
    blocks *= torch.where(common, torch.tensor(0.02), scales)
    levels = torch.tensor(NF4_CODE)
    ties = (levels[1:] + levels[:-1]) / 2
    tied = torch.cat(
        [torch.ones(1), ties, ties.nextafter(torch.tensor(2.0)), ties.nextafter(torch.tensor(-2.0)), levels]
    )
    powers = torch.randint(-100, 100, (len(blocks[5::50]), 1), generator=generator).float().exp2()
    blocks[5::50, : len(tied)] = tied * powers
    blocks[5::50, len(tied) :] = 0.0
    blocks[7::50] = 0.0
    blocks[8::50] = -0.0
    blocks[9::50, ::3] = 0.0
    blocks[10::50, ::3] = -0.0
    if dtype == torch.float16:
        blocks.clamp_(-6e4, 6e4)
    return blocks.view(-1)[:count].to(dtype)


def assert_same_bits(actual: Tensor, wanted: Tensor, what: str) -> None:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[wanted.element_size()]
    assert actual.dtype == wanted.dtype and actual.numel() == wanted.numel(), what
    differ = actual.reshape(-1).view(integer) != wanted.reshape(-1).view(integer)
    assert not differ.any(), (
        f"{what}: {int(differ.sum())} of {differ.numel()} differ, first at {int(differ.nonzero()[0])}"
    )


def rounded_bf16(values: Tensor) -> Tensor:
    """Finite fp32 to the nearest bf16, ties to even, in integers: no CPU's rounding instruction has a say."""
    bits = values.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(torch.int16).view(torch.bfloat16)


def dequantized_by_library(codes: Tensor, state: Any, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    state.dtype, state.shape = dtype, shape
    return functional.dequantize_4bit(codes, state).reshape(-1)


def assert_dequantised_alike(ours: NF4Tensor, codes: Tensor, state: Any, dtype: torch.dtype) -> None:
    """The library's bits: in rows as they are if blocks do not straddle them, else in one row; bf16 from its fp32."""
    shape = torch.Size(ours.shape)
    shape = shape if shape[-1] % BLOCK == 0 else torch.Size((1, shape.numel()))
    wanted = native = dequantized_by_library(codes, state, dtype, shape)
    if dtype == torch.bfloat16:
        exact = dequantized_by_library(codes, state, torch.float32, shape)
        wanted = rounded_bf16(exact)
        flushed = exact.abs() < torch.finfo(torch.float32).tiny
        assert_same_bits(native, torch.where(flushed & (native == 0), wanted * 0.0, wanted), "weights by its bf16")
    assert_same_bits(dequantize_nf4(ours, dtype), wanted, f"weights in {dtype}")


def check(weight: Tensor, *, double: bool, out_dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    ours = quantize_nf4(weight, double=double)
    assert_same_bits(ours.codes, codes, "codes")
    assert_same_bits(ours.absmax, state.absmax, "absmax")
    if double:
        assert ours.nested_absmax is not None and ours.nested_code is not None and ours.offset is not None
        assert_same_bits(ours.nested_absmax, state.state2.absmax, "nested absmax")
        assert_same_bits(ours.nested_code, state.state2.code, "nested code")
        assert_same_bits(ours.offset, state.offset, "offset")
    for dtype in out_dtypes:
        assert_dequantised_alike(ours, codes, state, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("double", [False, True])
def test_a_million_hard_values(dtype: torch.dtype, double: bool) -> None:
    check(hard_values(1 << 20, dtype, seed=0).view(1024, 1024), double=double)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_more_draws_of_ten_million(dtype: torch.dtype, seed: int) -> None:
    check(hard_values(10_000_000, dtype, seed=seed).view(2500, 4000), double=True)


def test_ten_million_values() -> None:
    check(hard_values(10_000_000, torch.bfloat16, seed=1).view(2500, 4000), double=True, out_dtypes=(torch.bfloat16,))


@pytest.mark.parametrize("shape", [(1,), (1, 64), (3, 21), (63, 100), (123, 431), (5, 2, 77), (257, 64)], ids=str)
@pytest.mark.parametrize("double", [False, True])
def test_odd_shapes(shape: tuple[int, ...], double: bool) -> None:
    count = torch.Size(shape).numel()
    check(hard_values(count, torch.float32, seed=count).view(shape), double=double)


def test_blocks_of_zeros_only() -> None:
    check(torch.zeros(64, 300), double=True)


def test_a_file_of_the_gpu_backend() -> None:
    """Files are written by the CUDA kernel, whose 8-bit indices are not ours: any indices must dequantise alike."""
    weight = hard_values(1 << 16, torch.float32, seed=3).view(256, 256)
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    generator = torch.Generator().manual_seed(0)
    state.absmax = torch.randint(0, 256, state.absmax.shape, generator=generator).to(torch.uint8)
    ours = quantize_nf4(weight)
    ours.absmax.copy_(state.absmax)
    for dtype in DTYPES:
        assert_dequantised_alike(ours, codes, state, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 80, 160, 4000])
def test_rows_that_cut_blocks(width: int, dtype: torch.dtype) -> None:
    """The library's answer for such rows is ours or, on a CPU with AVX512, the known wrong one; ours is near the
    weights."""
    weight = torch.randn(12, width, generator=torch.Generator().manual_seed(width)) * torch.arange(1.0, 13).view(-1, 1)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours = quantize_nf4(weight, double=False)
    wanted = dequantize_nf4(ours, dtype)
    met = dequantized_by_library(codes, state, dtype, weight.shape).view(weight.shape)
    place = torch.arange(width) // BLOCK
    wrong = torch.stack([state.absmax[row * (width // BLOCK) + place] for row in range(12)])
    levels = torch.tensor(NF4_CODE)[torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], 1).view(12, width).int()]
    assert torch.equal(met, wanted) or torch.equal(met, (levels * wrong).to(dtype))
    # Half of the widest gap between levels is 0.152 of absmax.
    blocks = torch.arange(weight.numel()).view(weight.shape) // BLOCK
    assert ((wanted.float() - weight).abs() <= 0.16 * state.absmax[blocks]).all()
