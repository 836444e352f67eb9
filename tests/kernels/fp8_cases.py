"""Checks of FP8, on any device: the tests on the CPU, under Triton's interpreter and on a GPU all call these."""

from __future__ import annotations

import torch
from kernels.op_cases import assert_untouched, random, within_nan
from tolerance import assert_accurate
from torch import Tensor

from whippet.kernels import fp8, gated_linear, gated_mlp, nf4_fp8
from whippet.kernels.fp8 import FP8Tensor, dequantize_fp8, quantize_fp8
from whippet.kernels.gated_mlp import Activation
from whippet.kernels.nf4 import dequantize_nf4, join_rows, quantize_nf4
from whippet.kernels.rms_norm import add_rms_norm

WIDTHS = (1, 64, 100, 431)


def same(left: FP8Tensor, right: FP8Tensor) -> bool:
    """Whether two are equal to the bit."""
    codes = torch.equal(left.codes.view(torch.uint8).cpu(), right.codes.view(torch.uint8).cpu())
    return codes and torch.equal(left.scales.cpu(), right.scales.cpu()) and left.dtype == right.dtype


def rough_rows(num_rows: int, width: int, dtype: torch.dtype, device: str) -> Tensor:
    """Rows of very different size: a zero one, a tiny one, a huge one, one number alone in its row."""
    x_TK = random(num_rows, width, dtype=torch.float32, device=device, seed=0, grad=False)
    most = 6e4 if dtype == torch.float16 else 3e38
    x_TK[0] = 0
    if num_rows > 4:
        x_TK[1] *= 1e-6 if dtype == torch.float16 else 1e-25
        x_TK[2] *= most / x_TK[2].abs().max()
        x_TK[3, :-1] = 0
    return x_TK.to(dtype)


def check_rows(num_rows: int, width: int, dtype: torch.dtype, device: str, *, strided: bool = False) -> None:
    """The kernel gives the definition's codes and scales to the bit, with and without a scale for each column."""
    x_TK = rough_rows(num_rows, width, dtype, device)
    if strided:
        wide = torch.full((num_rows, width + 3), float("nan"), dtype=dtype, device=device)
        wide[:, :width] = x_TK
        x_TK = wide[:, :width]
    scale_K = random(width, dtype=torch.float32, device=device, seed=1, grad=False).abs() * 1e-3
    for scale in (None, scale_K):
        assert same(fp8.rows_triton(x_TK, scale), fp8.rows_torch(x_TK, scale))
        sizes_TK = (x_TK.float() if scale is None else x_TK.float() * scale).abs()
        largest_T = fp8.no_largest(x_TK)
        assert not largest_T.any()
        largest_T.copy_(sizes_TK.amax(-1).view(torch.int32))
        assert same(fp8.rows_of_largest(x_TK, largest_T, scale), fp8.rows_torch(x_TK, scale))


def check_transposed(num_rows: int, num_columns: int, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (num_rows, num_columns), dtype=torch.uint8, generator=generator).to(device)
    turned = fp8.transposed(codes.view(fp8.FP8))
    assert turned.is_contiguous() and turned.dtype == fp8.FP8
    assert torch.equal(turned.view(torch.uint8), codes.T)


def check_nf4_codes(heights: tuple[int, ...], width: int, device: str, *, double: bool) -> None:
    """An NF4 matrix of parts becomes the FP8 matrix that its dequantised numbers give, to the bit, and that turned."""
    parts = [
        quantize_nf4(rough_rows(rows, width, torch.float16, device).float().nan_to_num(), double=double)
        for rows in heights
    ]
    weight = nf4_fp8.with_rows(join_rows(parts))
    wanted = quantize_fp8(dequantize_nf4(weight, torch.float32))
    made, turned = nf4_fp8.codes_of(weight), nf4_fp8.turned_codes_of(weight)
    assert torch.equal(made.codes.view(torch.uint8), wanted.codes.view(torch.uint8))
    assert torch.equal(made.scales, wanted.scales)
    assert turned.is_contiguous() and torch.equal(turned.view(torch.uint8), wanted.codes.view(torch.uint8).T)


def exact_product(x_TK: Tensor, weight: FP8Tensor) -> Tensor:
    """x · Wᵀ in double precision over x in FP8."""
    return dequantize_fp8(fp8.rows_torch(x_TK), torch.float64) @ dequantize_fp8(weight, torch.float64).T


def exact_gradient(grad_TN: Tensor, weight: FP8Tensor) -> Tensor:
    """g · W in double precision over g · s in FP8."""
    return dequantize_fp8(fp8.rows_torch(grad_TN.float() * weight.scales), torch.float64) @ weight.codes.double()


def check_products(
    tokens: int, num_outputs: int, num_inputs: int, dtype: torch.dtype, device: str, rtol: float
) -> None:
    """Both products, over weights whose rows differ in size, within ``rtol`` of each row's largest number."""
    weight_NK = random(num_outputs, num_inputs, dtype=torch.float32, device=device, seed=2, grad=False)
    sizes_N = torch.logspace(-3, 2, num_outputs, device=device)
    weight = quantize_fp8(weight_NK * sizes_N[:, None])
    x_TK = random(tokens, num_inputs, dtype=dtype, device=device, seed=3, grad=False)
    grad_TN = random(tokens, num_outputs, dtype=dtype, device=device, seed=4, grad=False) / sizes_N.to(dtype)
    for actual, exact in (
        (fp8.product(x_TK, weight), exact_product(x_TK, weight)),
        (fp8.input_gradient(grad_TN, weight), exact_gradient(grad_TN, weight)),
    ):
        assert actual.dtype == dtype and actual.shape == exact.shape
        error = (actual.double() - exact).abs() / exact.abs().amax(-1, keepdim=True)
        assert error.max() <= rtol, float(error.max())


def check_gated_rows(tokens: int, width: int, rank: int, dtype: torch.dtype, device: str) -> None:
    """In the backward pass, what comes out in FP8 is what comes out beside it, rounded; and that is what the kernels
    without FP8 give, but for a last bit that a compiler may round otherwise."""
    gate_up_TF2 = random(tokens, 2 * width, dtype=dtype, device=device, seed=0, grad=False)
    gate_up_TF2[tokens // 2] = 0
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6}
    scale_F2 = random(2 * width, dtype=torch.float32, device=device, seed=1, grad=False).abs() * 1e-3
    dhidden_TF = random(tokens, width, dtype=dtype, device=device, seed=2, grad=False)
    factors = [
        random(*shape, dtype=dtype, device=device, seed=3, grad=False) for shape in ((tokens, rank), (rank, width))
    ]
    added = factors if rank else []
    plain_hidden_TF, plain_TF2 = dhidden_TF.clone(), gate_up_TF2.clone()
    gated_linear.backward_triton(plain_hidden_TF, plain_TF2, *added)
    if rank:  # a sum of terms of which some are ten times as large as itself
        tolerance["atol"] = 1e-5
    gate_up_TF2, around = within_nan(gate_up_TF2)
    rows = gated_linear.backward_rows(dhidden_TF, gate_up_TF2, scale_F2, *added)
    assert same(rows, fp8.rows_torch(gate_up_TF2, scale_F2))
    torch.testing.assert_close(gate_up_TF2, plain_TF2, **tolerance)
    torch.testing.assert_close(dhidden_TF, plain_hidden_TF, **tolerance)
    assert_untouched(around, tokens, 2 * width)


def check_completed(
    tokens: int,
    width: int,
    ranks: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    activation: Activation = "silu",
) -> None:
    """What adapters add to gate and up is added where those lie, and the activation is that of the sums."""
    gate_up_TF2 = random(tokens, 2 * width, dtype=dtype, device=device, seed=0, grad=False)
    u_TR = random(tokens, sum(ranks), dtype=dtype, device=device, seed=1, grad=False)
    b_F2R = random(2 * width, sum(ranks), dtype=dtype, device=device, seed=2, grad=False)
    columns = slice(0, ranks[0]), slice(ranks[0], sum(ranks))
    halves = slice(0, width), slice(width, 2 * width)
    plain_TF2, exact_TF2 = gate_up_TF2.clone(), gate_up_TF2.double()
    for half, ranks_of_half in zip(halves, columns, strict=True):
        u, b = u_TR[:, ranks_of_half], b_F2R[half, ranks_of_half]
        plain_TF2[:, half].addmm_(u, b.T)
        exact_TF2[:, half] += u.double() @ b.double().T
    sums_TF2, around = within_nan(gate_up_TF2)
    u_TR, b_F2R = (within_nan(values, 5)[0] for values in (u_TR, b_F2R))
    added = [
        (u_TR[:, ranks_of_half], b_F2R[half, ranks_of_half])
        for half, ranks_of_half in zip(halves, columns, strict=True)
    ]
    version = sums_TF2._version
    y_TF, rows = gated_mlp.completed(sums_TF2, added, in_fp8=True, activation=activation)
    assert_accurate(sums_TF2, plain_TF2, exact_TF2)
    assert_untouched(around, tokens, 2 * width)
    assert rows is not None and same(rows, fp8.rows_torch(y_TF)) and sums_TF2._version > version
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(y_TF, gated_mlp.forward_triton(sums_TF2, activation), **tolerance)
    again_TF2 = gate_up_TF2.clone()
    same_TF, no_rows = gated_mlp.completed(again_TF2, added, in_fp8=False, activation=activation)
    assert_accurate(again_TF2, plain_TF2, exact_TF2)
    assert no_rows is None
    torch.testing.assert_close(same_TF, gated_mlp.forward_triton(again_TF2, activation), **tolerance)


def check_norm_rows(tokens: int, width: int, dtype: torch.dtype, device: str) -> None:
    """A norm's output in FP8 is its output, rounded; and nothing else changes, but for a last bit: where codes are
    written too, a compiler gives numbers to threads otherwise, and the mean is summed in another order. The root of
    the mean, the quotient and the product are rounded one after the other: a last bit each."""
    x_TH, residual_TH = (random(tokens, width, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    weight_H = random(width, dtype=torch.float32, device=device, seed=2, grad=False)
    for residual in (None, residual_TH):
        rows = fp8.empty_rows(x_TH, width)
        y_TH, sum_TH = add_rms_norm(x_TH, residual, weight_H, 1e-5, rows=rows)
        assert same(rows, fp8.rows_torch(y_TH))
        plain_y_TH, plain_sum_TH = add_rms_norm(x_TH, residual, weight_H, 1e-5)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y_TH, plain_y_TH, rtol=3 * eps, atol=torch.finfo(dtype).tiny)
        assert torch.equal(sum_TH, plain_sum_TH) and y_TH.requires_grad
