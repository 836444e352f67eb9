"""Int8 weights and activations in memory: codes with one absmax a row, quantised and dequantised in plain PyTorch.

    w[n, k] ≈ code[n, k] · absmax[n] / 127        absmax[n] = max over k of |w[n, k]|

This is the vector-wise quantisation of LLM.int8() (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section
2.2). A code is the nearest whole number to w · (127 / absmax), ties to even: its error is at most absmax / 254. absmax
is held and not absmax / 127: that is what bitsandbytes writes (``SCB``), and so files pass both ways to the bit.

In: numbers of any float dtype [N, K], on any device. Out: ``Int8Tensor``, and back to any float dtype.

Shapes: N rows (outputs of a weight, tokens of activations), K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whippet.errors import ModelError

LARGEST = 127.0
THRESHOLD = 6.0
"""From this size on a number of x is an outlier (section 3.2 of the paper)."""
LEAST = 2.0**-100
"""A row whose absmax is smaller is a row of zeros: no factor then overflows."""
CHUNK = 1 << 24
"""Weights that are quantised at once: 9 bytes of scratch each."""


@dataclass(frozen=True)
class Int8Tensor:
    """A matrix in int8, by rows."""

    codes: Tensor
    """int8 [N, K]."""
    absmax: Tensor
    """fp32 [N]."""
    dtype: torch.dtype
    """Dtype that the numbers had."""
    threshold: float = THRESHOLD
    """Size of x from which a column is multiplied in 16 bit; 0 for none."""

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != torch.int8 or self.absmax.shape != self.codes.shape[:1]:
            raise ModelError(
                f"an int8 matrix needs codes [N, K] in {torch.int8} and absmax [N], met {list(self.codes.shape)} in "
                f"{self.codes.dtype} and {list(self.absmax.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.codes.numel()

    @property
    def nbytes(self) -> int:
        """Bytes that the parts take."""
        return self.codes.nbytes + self.absmax.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device | str) -> Int8Tensor:
        """The same numbers on ``device``."""
        return replace(self, codes=self.codes.to(device), absmax=self.absmax.to(device))


def quantize_int8(weight: Tensor, *, threshold: float = THRESHOLD, name: str = "weight") -> Int8Tensor:
    """Quantise a matrix of any float dtype, in bounded scratch.

    Raises ModelError, naming ``name``, for another dtype or shape and for NaN or infinity.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ModelError(f"{name}: int8 takes a matrix of floats, met {weight.dtype} of shape {list(weight.shape)}")
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    absmax = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    step = max(1, CHUNK // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        codes[rows], absmax[rows] = rows_int8(weight[rows].detach())
    if not bool(absmax.isfinite().all()):
        row = int(absmax.isfinite().logical_not().nonzero()[0])
        raise ModelError(f"{name}: int8 needs finite weights, met NaN or infinity in row {row} of {len(weight)}")
    return Int8Tensor(codes, absmax, weight.dtype, threshold)


def rows_int8(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: codes [T, K] and absmax [T] of numbers by rows. A row with NaN or infinity has such an absmax."""
    x32_TK = x_TK.float()
    absmax_T = x32_TK.abs().amax(-1) if x_TK.shape[1] else x32_TK.new_zeros(len(x_TK))
    # A division proper: torch takes 127 / absmax for 127 · (1 / absmax), which is rounded twice.
    up_T = torch.full_like(absmax_T, LARGEST) / absmax_T.clamp_min(LEAST)
    # NaN has no code; whoever makes one of it looks at absmax.
    codes_TK = (x32_TK * up_T[:, None]).round_().nan_to_num_(0.0).clamp_(-LARGEST, LARGEST)
    return codes_TK.to(torch.int8), absmax_T


def dequantize_int8(weight: Int8Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers in ``dtype`` (by default the one they had): formed in fp32, in the order of bitsandbytes, and rounded
    once."""
    return weight.codes.float().mul_(weight.absmax[:, None]).mul_(1 / LARGEST).to(dtype or weight.dtype)


def join_rows(parts: Sequence[Int8Tensor]) -> Int8Tensor:
    """Lay matrices of the same width one below the other; dequantises to the parts' own values."""
    if len(parts) == 1:
        return parts[0]
    if len({(part.shape[1], part.dtype, part.threshold) for part in parts}) > 1:
        met = ", ".join(f"{list(part.shape)} {part.dtype} (threshold {part.threshold:g})" for part in parts)
        raise ModelError(f"int8 parts to be joined need one width, dtype and threshold, met {met}")
    codes = torch.cat([part.codes for part in parts])
    return Int8Tensor(codes, torch.cat([part.absmax for part in parts]), parts[0].dtype, parts[0].threshold)


def slice_rows(weight: Int8Tensor, start: int, stop: int) -> Int8Tensor:
    """Rows ``start`` to ``stop``, sharing memory."""
    return replace(weight, codes=weight.codes[start:stop], absmax=weight.absmax[start:stop])
