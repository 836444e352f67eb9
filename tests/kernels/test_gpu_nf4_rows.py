"""``nf4_rows`` on a GPU."""

from __future__ import annotations

import pytest
import torch
from kernels import nf4_rows_cases as cases
from kernels.op_cases import random

from whippet.kernels import cuda_jit, nf4_rows
from whippet.kernels.nf4_rows import nf4_rows as product

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not cuda_jit.usable(torch.empty(1, device="cuda")),
        reason="needs a CUDA device since Ampere, and NVRTC",
    ),
]
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SHAPES = ((48, 64), (20, 832), (37, 576), (4096, 4096), (6144, 4096), (4096, 14336), (28672, 4096))


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("nested", [0, 1, 2])
def test_rows(shape: tuple[int, int], nested: int, dtype: torch.dtype) -> None:
    weight = cases.weights(*shape, dtype, "cuda", nested)
    for num_rows in (1, 2, 7, 8, 9, 16, 37):
        cases.check_rows(product, num_rows, weight, dtype, strided=num_rows == 7)


@pytest.mark.parametrize("layout", nf4_rows.LAYOUTS, ids=str)
def test_layouts(layout: nf4_rows.Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_rows, "_layout", lambda index, nested, columns: layout)
    weight = cases.weights(300, 1600, torch.bfloat16, "cuda", 1)
    cases.check_rows(product, 5, weight, torch.bfloat16, strided=False)


@dtypes
@pytest.mark.parametrize("shape", [(20, 832), (6144, 4096), (4096, 14336)], ids=str)
def test_a_row_alone(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for num_rows in (2, 8, 16, 40):
        cases.check_alone(product, num_rows, cases.weights(*shape, dtype, "cuda", 1), dtype)


def test_in_a_cuda_graph() -> None:
    weight = cases.weights(4096, 4096, torch.bfloat16, "cuda", 1)
    x_TK = random(3, 4096, dtype=torch.bfloat16, device="cuda", seed=1, grad=False)
    wanted, held_TK = product(x_TK, weight), torch.zeros_like(x_TK)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = product(held_TK, weight)
    for _ in range(3):
        held_TK.copy_(x_TK)
        graph.replay()
        assert torch.equal(made, wanted)
