"""FP8 weights and activations in memory: e4m3 codes with one scale a row, quantised and dequantised in plain PyTorch.

    w[n, k] ≈ code[n, k] · scale[n]        scale[n] = max over k of |w[n, k]| / 448

448 is the largest number of e4m3 (four bits of exponent, three of mantissa, no infinity; Micikevicius et al. 2022,
https://arxiv.org/abs/2209.05433). A code is the nearest one to w · (448 / absmax), ties to even: its error is at most
1/16 of the number, or 2⁻¹⁰ · scale where the code is subnormal, that is where w is below 1/28672 of its row's largest.

In: numbers of any float dtype [N, K], on any device. Out: ``FP8Tensor``, and back to any float dtype.

Shapes: N rows (outputs of a weight, tokens of activations), K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whippet.errors import ModelError

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST = 2.0**-100
"""A smaller absmax counts as this one, so that a row of zeros has a scale, and no scale is subnormal in fp32."""
CHUNK = 1 << 24
"""Weights that are quantised at once: 9 bytes of scratch each."""


@dataclass(frozen=True)
class FP8Tensor:
    """A matrix in FP8, by rows."""

    codes: Tensor
    """float8_e4m3fn [N, K]."""
    scales: Tensor
    """fp32 [N]."""
    dtype: torch.dtype
    """Dtype that the numbers had."""

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != FP8 or self.scales.shape != self.codes.shape[:1]:
            raise ModelError(
                f"an FP8 matrix needs codes [N, K] in {FP8} and scales [N], met {list(self.codes.shape)} in "
                f"{self.codes.dtype} and {list(self.scales.shape)}"
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
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device | str) -> FP8Tensor:
        """The same numbers on ``device``."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))


def quantize_fp8(weight: Tensor, *, name: str = "weight") -> FP8Tensor:
    """Quantise a matrix of any float dtype, in bounded scratch.

    Raises ModelError, naming ``name``, for another dtype or shape and for NaN or infinity.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ModelError(f"{name}: FP8 takes a matrix of floats, met {weight.dtype} of shape {list(weight.shape)}")
    codes = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    step = max(1, CHUNK // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        part = rows_torch(weight[rows].detach())
        codes[rows], scales[rows] = part.codes, part.scales
    if not bool(scales.isfinite().all()):
        row = int(scales.isfinite().logical_not().nonzero()[0])
        raise ModelError(f"{name}: FP8 needs finite weights, met NaN or infinity in row {row} of {len(weight)}")
    return FP8Tensor(codes, scales, weight.dtype)


def rows_torch(x_TK: Tensor, scale_K: Tensor | None = None) -> FP8Tensor:
    """The definition: x, or x · scale_K in fp32, by rows. A row with NaN or infinity gets codes or a scale that are so
    too, never others."""
    x32_TK = x_TK.float() if scale_K is None else x_TK.float() * scale_K.float()
    absmax_T1 = x32_TK.abs().amax(-1, keepdim=True) if x32_TK.shape[1] else x32_TK.new_zeros(len(x32_TK), 1)
    absmax_T1 = absmax_T1.clamp_min(LEAST)
    # A division proper: torch takes 448 / absmax for 448 · (1 / absmax), which is rounded twice.
    up_T1 = torch.full_like(absmax_T1, LARGEST) / absmax_T1
    return FP8Tensor((x32_TK * up_T1).to(FP8), (absmax_T1 * (1 / LARGEST)).squeeze(1), x_TK.dtype)


def dequantize_fp8(weight: FP8Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers in ``dtype`` (by default the one they had): the product is formed in fp32 and rounded once."""
    return (weight.codes.float() * weight.scales[:, None]).to(dtype or weight.dtype)


def join_rows(parts: Sequence[FP8Tensor]) -> FP8Tensor:
    """Lay matrices of the same width one below the other; dequantises to the parts' own values."""
    if len(parts) == 1:
        return parts[0]
    if len({(part.shape[1], part.dtype) for part in parts}) > 1:
        met = ", ".join(f"{list(part.shape)} {part.dtype}" for part in parts)
        raise ModelError(f"FP8 parts to be joined need one width and dtype, met {met}")
    # Bytes, since torch lacks much for FP8 itself.
    codes = torch.cat([part.codes.view(torch.uint8) for part in parts]).view(FP8)
    return FP8Tensor(codes, torch.cat([part.scales for part in parts]), parts[0].dtype)
