"""FP8 on a GPU that has it: the kernels to the bit, the products within their fast sums' error, in a CUDA graph too."""

from __future__ import annotations

import pytest
import torch
from kernels import fp8_cases as cases
from kernels.op_cases import random
from kernels.test_fp8 import decoder_and_gradients

from whippet.kernels import fp8, gated_linear, gated_mlp
from whippet.kernels.fp8 import FP8Tensor, quantize_fp8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs Hopper or later"
    ),
]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@dtypes
@pytest.mark.parametrize("width", [*cases.WIDTHS, 4096, 14336, 28672, 40000])
@pytest.mark.parametrize("strided", [False, True])
def test_rows(width: int, dtype: torch.dtype, strided: bool) -> None:
    cases.check_rows(63, width, dtype, "cuda", strided=strided)


@pytest.mark.parametrize("shape", [(16, 16), (132, 52), (63, 100), (6144, 4096), (28672, 4096), (4096, 14336)], ids=str)
def test_transposed(shape: tuple[int, int]) -> None:
    cases.check_transposed(*shape, "cuda")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    ("heights", "width"),
    [((16,), 64), ((130,), 192), ((256, 64), 72), ((4096, 1024, 1024), 4096), ((4096,), 14336)],
    ids=str,
)
def test_nf4_codes(heights: tuple[int, ...], width: int, double: bool) -> None:
    cases.check_nf4_codes(heights, width, "cuda", double=double)


@dtypes
@pytest.mark.parametrize("width", [16, 100, 431, 4096])
def test_norm_rows(width: int, dtype: torch.dtype) -> None:
    cases.check_norm_rows(63, width, dtype, "cuda")


@dtypes
@pytest.mark.parametrize("width", [16, 100, 431, 14336])
@pytest.mark.parametrize("rank", [0, 1, 16, 24, 100])
def test_gated_rows(width: int, rank: int, dtype: torch.dtype) -> None:
    cases.check_gated_rows(63, width, rank, dtype, "cuda")


@dtypes
@pytest.mark.parametrize("width", [16, 100, 431, 14336])
@pytest.mark.parametrize("ranks", [(16, 16), (1, 4), (0, 24), (100, 0), (64, 64)], ids=str)
def test_completed(width: int, ranks: tuple[int, int], dtype: torch.dtype) -> None:
    cases.check_completed(63, width, ranks, dtype, "cuda")


def test_weights_equal_the_cpu() -> None:
    weight = random(300, 4096, dtype=torch.bfloat16, device="cpu", seed=0, grad=False)
    assert cases.same(quantize_fp8(weight.cuda()), quantize_fp8(weight))


@pytest.mark.parametrize("shape", [(1, 16, 16), (63, 96, 128), (300, 6144, 4096), (300, 4096, 14336)], ids=str)
def test_products(shape: tuple[int, int, int]) -> None:
    """bf16 rounds to 2⁻⁹. Hopper's tensor cores sum FP8 in 13 or 14 bits (``use_fast_accum``), and each of thousands
    of terms may lose the last: 0.0083 of the largest number of a row at K = 6144, and 0.0108 at 14336."""
    cases.check_products(*shape, torch.bfloat16, "cuda", 2**-6)


def test_shapes_that_tensor_cores_refuse() -> None:
    cases.check_products(63, 100, 123, torch.bfloat16, "cuda", 2**-8)


@pytest.mark.parametrize("recompute", [0, 2])
def test_a_decoder_learns_as_over_the_same_weights_in_fp32(recompute: int) -> None:
    """``test_fp8.py`` says how near and why."""
    exact_loss, exact = decoder_and_gradients("fp32", torch.float32)
    loss, gradients = decoder_and_gradients("fp8", torch.bfloat16, recompute, "cuda")
    assert abs(loss - exact_loss) <= 0.01 * exact_loss
    off = (gradients - exact).norm() / exact.norm()
    assert 0.05 < off < 0.12, float(off)


def test_gated_passes_in_a_cuda_graph() -> None:
    """The largest numbers begin at zero in each replay."""
    gate_up_TF2, u_TR = (random(63, n, dtype=torch.bfloat16, device="cuda", seed=n, grad=False) for n in (200, 16))
    b_F2R, a_RF = (
        random(*shape, dtype=torch.bfloat16, device="cuda", seed=1, grad=False) for shape in ((200, 16), (16, 100))
    )
    added = [(u_TR[:, :8], b_F2R[:100, :8]), (u_TR[:, 8:], b_F2R[100:, 8:])]
    scale_F2 = torch.rand(200, device="cuda")
    held_TF2 = torch.zeros_like(gate_up_TF2)

    def passes() -> tuple[FP8Tensor, FP8Tensor]:
        sums_TF2 = held_TF2.clone()
        y_TF, rows = gated_mlp.completed(sums_TF2, added, in_fp8=True)
        assert rows is not None
        return rows, gated_linear.backward_rows(y_TF, sums_TF2, scale_F2, u_TR, a_RF)

    passes()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = passes()
    for size in (100.0, 1.0):  # the larger first
        held_TF2.copy_(gate_up_TF2 * size)
        graph.replay()
        assert all(cases.same(one, other) for one, other in zip(made, passes(), strict=True))


def test_products_in_a_cuda_graph() -> None:
    weight = quantize_fp8(random(256, 512, dtype=torch.bfloat16, device="cuda", seed=0, grad=False))
    x_TK = random(128, 512, dtype=torch.bfloat16, device="cuda", seed=1, grad=False)
    grad_TN = random(128, 256, dtype=torch.bfloat16, device="cuda", seed=2, grad=False)
    wanted = fp8.product(x_TK, weight), fp8.input_gradient(grad_TN, weight)
    held_x, held_grad = torch.zeros_like(x_TK), torch.zeros_like(grad_TN)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = fp8.product(held_x, weight), fp8.input_gradient(held_grad, weight)
    held_x.copy_(x_TK)
    held_grad.copy_(grad_TN)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(made, wanted, strict=True))


def test_ones_of_a_cuda_graph_are_its_own() -> None:
    """They hold values once it is replayed, not before: nobody else may get them."""
    device, size = torch.device("cuda", torch.cuda.current_device()), 12347
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        within = fp8._ones(device, size)
    held = fp8._ones(device, size)
    assert held is not within and bool((held == 1).all()) and fp8._ones(device, size) is held
