"""Which level is nearest: the roundings of bitsandbytes 0.50 on each of its backends, in plain torch.

NF4 index: x = w · (1 / absmax), and the index is the number of midpoints between levels that x exceeds, so that a tie
goes down. The CPU backend raises absmax to 1e-38 before it divides, and in a last, shorter block divides by absmax
itself, which it stores raised. The CUDA kernel does neither, so that a block of zeros becomes 0 · inf = NaN, which
exceeds nothing: index 0.

8-bit index of absmax, y = a · (1 / absmax of 256): the CUDA kernel counts midpoints as above; the CPU backend cuts
[-1, 1] into 65,535 steps and looks the nearest level of the step up, which differs in about 0.15 % of the indices.

The CPU rounding is held to the library bit for bit by ``tests/parity/test_nf4.py``. The CUDA one differs from it where
the library's approximate reciprocal decides a tie (measured on an H100: 2 of 1.8e8 indices, 3 of 3.5e6 8-bit indices)
and for absmax below 1.2e-38, which its kernel flushes to zero.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 64
NESTED_BLOCK = 256
NF4_CODE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 levels: appendix E of https://arxiv.org/abs/2305.14314."""
SMALLEST = 1e-38
STEPS = 65535
"""Steps into which the CPU backend cuts [-1, 1] for its table of nearest 8-bit levels."""


def nearest_nf4(flat: Tensor) -> tuple[Tensor, Tensor]:
    """NF4 indices, uint8 [n], and absmax, fp32 [blocks], of a flat fp32 tensor whose last block may be short."""
    as_cuda = flat.is_cuda
    whole = flat.numel() // BLOCK * BLOCK
    blocks = flat[:whole].view(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1 / (absmax if as_cuda else absmax.clamp(min=SMALLEST))).view(-1, 1)).view(-1)
    rest = flat[whole:]
    if len(rest):
        largest = rest.abs().amax()
        if as_cuda:
            scaled_rest = rest * (1 / largest)
        else:
            largest = largest.clamp(min=SMALLEST)
            scaled_rest = rest / largest
        scaled, absmax = torch.cat([scaled, scaled_rest]), torch.cat([absmax, largest.view(1)])
    if as_cuda:
        scaled = scaled.nan_to_num_(nan=-1.0)
    return torch.bucketize(scaled, _nf4_midpoints(flat.device), out_int32=True).to(torch.uint8), absmax


def nearest_8bit(values: Tensor) -> tuple[Tensor, Tensor]:
    """Indices into ``dynamic_code``, uint8 [n], and the absolute maximum of each 256 values, fp32 [ceil(n / 256)]."""
    num_blocks = -(-values.numel() // NESTED_BLOCK)
    padded = torch.zeros(num_blocks * NESTED_BLOCK, device=values.device)
    padded[: values.numel()] = values
    blocks = padded.view(num_blocks, NESTED_BLOCK)
    absmax = blocks.abs().amax(1) if num_blocks else blocks.new_empty(0)
    scaled = (blocks * (1 / absmax).view(-1, 1)).clamp_(-1, 1).view(-1)
    code = dynamic_code(values.device)
    if values.is_cuda:
        indices = torch.bucketize(scaled, (code[:-1] + code[1:]) * 0.5).to(torch.uint8)
    else:
        indices = _by_step(scaled, code)
        indices.view(num_blocks, NESTED_BLOCK)[absmax == 0] = 0
    return indices[: values.numel()], absmax


@cache
def dynamic_code(device: torch.device) -> Tensor:
    """The 256 levels of the signed dynamic 8-bit type, fp32, sorted (Dettmers 2016, https://arxiv.org/abs/1511.04561).

    For e = 0 … 6: the middles of 2^e equal parts of [0.1, 1], times 10^(e - 6), with both signs; then 0 and 1.
    """
    levels = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (borders[:-1] + borders[1:]) / 2.0
        levels += [10 ** (exponent - 6) * middles, -(10 ** (exponent - 6)) * middles]
    return torch.cat(levels).sort().values.to(device)


def _by_step(scaled: Tensor, code: Tensor) -> Tensor:
    """The CPU backend's table look-up; the step is rounded once, as its fused multiply-add does."""
    steps = torch.arange(STEPS + 1, dtype=torch.float32) * 2 / STEPS - 1
    table = torch.bucketize(steps, (code[:-1] + code[1:]) * 0.5).to(torch.uint8)
    step = (((scaled + 1) * 0.5).double() * STEPS + 0.5).float().nan_to_num_(nan=0.0)
    return table[step.int()]


@cache
def _nf4_midpoints(device: torch.device) -> Tensor:
    code = torch.tensor(NF4_CODE, dtype=torch.float32, device=device)
    return (code[1:] + code[:-1]) / 2
