"""Times the FP8 kernels at an 8B layer's shapes: ``python benchmarks/fp8.py [TOKENS]``, on Hopper or later.

Prints microseconds, and terabytes a second or teraflops, of each kernel beside what it replaces. Between runs the L2
cache is flushed, as a layer's other work does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch

from whippet.kernels import fp8, gated_linear, gated_mlp
from whippet.kernels.fp8 import quantize_fp8, quantize_rows
from whippet.kernels.rms_norm import add_rms_norm

SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
RUNS = 20


def microseconds(run: Callable[[], object]) -> float:
    """The median of ``RUNS`` runs, the first few left out."""
    flushed = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(RUNS + 3):
        flushed.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(1000 * start.elapsed_time(stop))
    return sorted(times[3:])[RUNS // 2]


def tell(name: str, run: Callable[[], object], *, moved: int = 0, flops: int = 0) -> None:
    time = microseconds(run)
    rate = f"{flops / time / 1e6:6.0f} TFLOP/s" if flops else f"{moved / time / 1e6:6.2f} TB/s"
    print(f"{name:<64}{time:9.1f} us  {rate}")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda").bfloat16()


def main(tokens: int) -> None:
    print(torch.cuda.get_device_name(), torch.__version__, f"{tokens} tokens")
    for rows, columns in SHAPES:
        shape, weight = f"{rows} x {columns}", quantize_fp8(random(rows, columns))
        x_TK, grad_TN = random(tokens, columns), random(tokens, rows)
        x_rows, grad_rows = quantize_rows(x_TK), quantize_rows(grad_TN, weight.scales)
        dense = fp8.dequantize_fp8(weight, torch.bfloat16)
        flops = 2 * tokens * rows * columns
        for tile in (16, 32, 64):
            fp8.TILE = tile
            tell(
                f"{shape} transposed, tiles of {tile}", partial(fp8.transposed, weight.codes), moved=2 * rows * columns
            )
        fp8.TILE = 32
        tell(f"{shape} x in FP8", partial(quantize_rows, x_TK), moved=3 * x_TK.numel())
        tell(f"{shape} g s in FP8", partial(quantize_rows, grad_TN, weight.scales), moved=3 * grad_TN.numel())
        tell(f"{shape} product, x in FP8 at hand", partial(fp8.product, x_TK, weight, x_rows), flops=flops)
        tell(
            f"{shape} gradient, g in FP8 at hand", partial(fp8.input_gradient, grad_TN, weight, grad_rows), flops=flops
        )
        tell(f"{shape} product in bf16", partial(torch.mm, x_TK, dense.T), flops=flops)
        tell(f"{shape} gradient in bf16", partial(torch.mm, grad_TN, dense), flops=flops)
    width, hidden = 14336, 4096
    gate_up, grad, scales = random(tokens, 2 * width), random(tokens, width), torch.rand(2 * width, device="cuda")
    one = tokens * width
    tell("activation", lambda: gated_mlp.forward_triton(gate_up), moved=6 * one)
    tell("activation's backward", lambda: gated_linear.backward_triton(grad, gate_up), moved=12 * one)
    gate_up, grad = random(tokens, 2 * width), random(tokens, width)
    tell("activation's backward with FP8", lambda: gated_linear.backward_rows(grad, gate_up, scales), moved=14 * one)
    x_TH, weight_H = random(tokens, hidden), torch.ones(hidden, device="cuda")
    rows = fp8.empty_rows(x_TH, hidden)
    tell("norm", lambda: add_rms_norm(x_TH, x_TH, weight_H, 1e-5), moved=8 * x_TH.numel())
    tell("norm with FP8", lambda: add_rms_norm(x_TH, x_TH, weight_H, 1e-5, rows=rows), moved=9 * x_TH.numel())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4096)
