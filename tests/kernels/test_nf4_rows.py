"""``nf4_rows`` without a GPU: its CUDA source run by a C++ compiler's means, and compiled by NVRTC.

The first needs g++, the second NVRTC (pip install nvidia-cuda-nvrtc); without them these tests skip.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernels import nf4_rows_cases as cases
from torch import Tensor

from whippet.kernels import cuda_jit, nf4_rows
from whippet.kernels.nf4 import NF4Tensor, quantize_nf4
from whippet.kernels.nf4_rows import Layout

HOST = Path(__file__).with_name("nf4_rows_host.cpp")
Maker = Callable[[Layout, int], cases.Product]
"""Layout, number of blocks → the product on the CPU."""


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("nf4_rows")
    (folder / "nf4_rows.cu").write_text(nf4_rows.SOURCE, encoding="utf-8")
    libraries: dict[cuda_jit.Defines, ctypes.CDLL] = {}

    def library(defines: cuda_jit.Defines) -> ctypes.CDLL:
        if defines not in libraries:
            path = folder / f"{len(libraries)}.so"
            options = [f"-D{name}={value}" for name, value in defines]
            command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-I{folder}", *options, str(HOST)]
            subprocess.run([*command, "-o", str(path)], check=True)
            libraries[defines] = ctypes.CDLL(str(path))
        return libraries[defines]

    def maker(layout: Layout, blocks: int) -> cases.Product:
        def product(x_TK: Tensor, weight: NF4Tensor, dtype: torch.dtype) -> Tensor:
            y_TN = torch.empty(len(x_TK), weight.shape[0], dtype=dtype)
            columns, nested = -(-len(x_TK) // 8), nf4_rows._nested(weight)
            run = library(nf4_rows.defines(x_TK.dtype, nested, columns, layout)).run
            arguments = nf4_rows.arguments(x_TK, weight, y_TN)
            status = run(blocks, layout.shared(nested, columns), *(cuda_jit._value(value) for value in arguments))
            assert status == 0, status  # what it says is in the C++ file
            return y_TN

        return product

    return maker


@pytest.mark.parametrize(
    ("layout", "blocks", "nested", "dtype"),
    [
        (nf4_rows.LAYOUTS[0], 1, 1, torch.bfloat16),
        (Layout(2, 2, 2, spread=1), 3, 2, torch.bfloat16),
        (Layout(4, 1, 3, permuted=2), 2, 0, torch.float16),
    ],
    ids=str,
)
def test_rows(on_the_cpu: Maker, layout: Layout, blocks: int, nested: int, dtype: torch.dtype) -> None:
    """More groups than tiles and fewer, a last tile of 4 and of 5 rows, rows of absmax that begin inside a word."""
    product = on_the_cpu(layout, blocks)
    for num_rows, num_outputs, width in ((1, 48, 64), (3, 20, 832), (8, 37, 576), (16, 20, 832)):
        weight = cases.weights(num_outputs, width, dtype, "cpu", nested)
        cases.check_rows(product, num_rows, weight, dtype, strided=num_rows == 3)


def test_a_row_alone(on_the_cpu: Maker) -> None:
    product = on_the_cpu(Layout(2, 2, 2), 2)
    cases.check_alone(product, 13, cases.weights(20, 832, torch.bfloat16, "cpu", 1), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_levels_times_gain_round_best(dtype: torch.dtype) -> None:
    """``GAIN`` says by how much; a neighbour is worse, and 1 is."""
    blocks = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.tensor(nf4_rows.NF4_CODE, dtype=torch.float64)
    scaled = (blocks / blocks.abs().amax(1, keepdim=True)).flatten()
    share = torch.bincount(torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2), minlength=16) / scaled.numel()

    def error(gain: float) -> float:
        return float((share * ((levels * gain).to(dtype).double() / gain - levels) ** 2).sum().sqrt())

    found = error(nf4_rows.GAIN[dtype])
    assert found == pytest.approx({torch.bfloat16: 3.1e-4, torch.float16: 3.2e-5}[dtype], rel=0.02)
    assert all(found < error(nf4_rows.GAIN[dtype] + step * 2**-10) for step in (-1, 1)) and found < 0.6 * error(1.0)


def test_what_it_serves() -> None:
    weight = quantize_nf4(torch.randn(20, 128))
    assert nf4_rows.fits(weight)
    assert not nf4_rows.fits(quantize_nf4(torch.randn(20, 96)))  # blocks that two rows share
    assert not nf4_rows.fits(quantize_nf4(torch.randn(2, 20, 128)))
    shifted = torch.empty(len(weight.codes) + 1, dtype=torch.uint8)[1:].copy_(weight.codes)
    assert not nf4_rows.fits(NF4Tensor(shifted, weight.absmax.float(), weight.shape, weight.dtype))
    assert not nf4_rows.applies(torch.randn(1, 128, dtype=torch.bfloat16), weight)  # there is no GPU where it lies


@pytest.mark.skipif(cuda_jit._nvrtc() is None, reason="NVRTC is not installed")
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)], ids=str)
def test_it_compiles(capability: tuple[int, int]) -> None:
    for dtype, nested, columns in ((torch.bfloat16, 1, 1), (torch.bfloat16, 2, 2), (torch.float16, 0, 2)):
        for layout in (nf4_rows.LAYOUTS[0], Layout(4, 1, 2, spread=1, permuted=1)):
            defines = dict(nf4_rows.defines(dtype, nested, columns, layout))
            code = cuda_jit.build(nf4_rows.SOURCE, defines, capability)
            assert code[:4] == b"\x7fELF" and b"nf4_rows" in code


@pytest.mark.skipif(cuda_jit._nvrtc() is None, reason="NVRTC is not installed")
def test_the_compilers_words() -> None:
    with pytest.raises(RuntimeError, match=r'kernel\.cu\(1\).*"nothing" is undefined'):
        cuda_jit.build("int number = nothing;", {}, (9, 0))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_jit, "_nvrtc", lambda: None)
    with pytest.raises(RuntimeError, match="NVRTC is not installed"):
        cuda_jit.build("", {}, (9, 0))


def test_every_layout_fits_some_card() -> None:
    """A100: 163 KB a block; consumer cards: 99 KB."""
    for most, wanted in ((227, 0), (163, 1), (99, 2)):
        layout = nf4_rows.LAYOUTS[wanted]
        assert layout.shared(2, 2) + nf4_rows.STATIC <= most * 1024
