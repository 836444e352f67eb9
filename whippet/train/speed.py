"""How fast a device multiplies: one short measurement, and what data sheets promise.

Comes in: a device and a dtype. Goes out: operations a second that training can expect, for the plan's time; and the
peak of the chip, against which the use of it (MFU) is told.
"""

from __future__ import annotations

import sys
import time

import torch

if sys.platform != "win32":
    import resource

PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100": 989, "GH200": 989, "A100": 312, "L40S": 362, "L40": 181, "L4": 121,
    "A10G": 70, "A10": 125, "A6000": 155, "RTX 5090": 210, "RTX 4090": 165, "RTX 4080": 97, "RTX 3090": 71,
    "V100": 125, "T4": 65,
}  # fmt: skip
"""Dense 16-bit products with fp32 sums, by NVIDIA's data sheets, under a part of the name that torch gives."""
OF_PEAK = 0.4
"""Share of a chip's peak that whole training steps reach."""
OF_MEASURED = {"cuda": 0.55, "cpu": 0.45}
"""Share of one large product's rate that they reach."""
SIDE = {"cuda": 4096, "cpu": 256}


def peak_flops(device: torch.device) -> float | None:
    """Operations a second in 16 bit by the data sheet; None for a chip that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = max((part for part in PEAK_TFLOPS if part in name), key=len, default=None)
    return PEAK_TFLOPS[known] * 1e12 if known else None


def expected_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that a training step is expected to reach."""
    expected = measured_flops(device, dtype) * OF_MEASURED[device.type]
    peak = peak_flops(device)
    return expected if peak is None or dtype == torch.float32 else min(expected, OF_PEAK * peak)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a few square products: milliseconds, or a tenth of a second where 16-bit ones are slow."""
    side = SIDE[device.type]
    left = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        left @ left
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process took so far: of the GPU's memory by tensors, else of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
