"""The types of tensors in a GGUF file: how rows of numbers become bytes, and bytes numbers again.

Layouts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and the reference in the ``gguf`` package, against
which the tests hold every type. A row is cut into blocks; each block holds its scales and its codes. In: fp32
``[rows, columns]`` on any device. Out: uint8 ``[rows, bytes]``, and back. B: blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.weights import gguf_kquants as kquants


@dataclass(frozen=True)
class Kind:
    """A type of tensor."""

    name: str
    number: int
    """In the file."""
    weights: int
    """Numbers in a block."""
    nbytes: int
    """Bytes of a block."""

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row. ModelError if no whole number of blocks makes one."""
        if columns % self.weights:
            raise ModelError(f"{self.name} holds rows of whole blocks of {self.weights}, not of {columns} numbers")
        return columns // self.weights * self.nbytes


KINDS = {
    kind.name: kind
    for kind in (
        Kind("f32", 0, 1, 4),
        Kind("f16", 1, 1, 2),
        Kind("bf16", 30, 1, 2),
        Kind("q8_0", 8, 32, 34),
        Kind("q4_0", 2, 32, 18),
        Kind("q4_k", 12, 256, 144),
        Kind("q5_k", 13, 256, 176),
        Kind("q6_k", 14, 256, 210),
    )
}
NUMBERS = {kind.number: kind for kind in KINDS.values()}
FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
CHUNKS = {"cpu": 2**18, "cuda": 2**24}
"""Numbers that are worked on at a time. The search for scales takes some ten times their memory and passes over it
again and again: on a CPU it is 2.4 times as quick where that stays in the cache."""


def quantise(rows_RC: Tensor, kind: Kind, *, where: str) -> Tensor:
    """``rows_RC`` as bytes of ``kind``: uint8 ``[R, bytes]`` on its device. ModelError, which names ``where``, for
    values that are not finite, or not in this kind."""
    rows, columns = rows_RC.shape
    out = torch.empty(rows, kind.row_bytes(columns), dtype=torch.uint8, device=rows_RC.device)
    step = max(1, CHUNKS[rows_RC.device.type] // columns)
    for begin in range(0, rows, step):
        some = rows_RC[begin : begin + step].float()
        if not some.isfinite().all():
            raise ModelError(f"{where} holds values that are not finite")
        if kind.name in FLOATS:
            packed = some.to(FLOATS[kind.name]).contiguous()
            scales = packed
            packed = packed.view(torch.uint8)
        else:
            packed, scales = QUANTISERS[kind.name](some.reshape(-1, kind.weights))
        if not scales.isfinite().all():
            raise ModelError(f"{where}: values or their scales are too large for {kind.name}, whose floats have 16 bit")
        out[begin : begin + step] = packed.reshape(len(some), -1)
    return out


def dequantise(packed_RN: Tensor, kind: Kind) -> Tensor:
    """uint8 ``[R, bytes]`` as fp32 ``[R, columns]``."""
    if kind.name in FLOATS:
        return packed_RN.contiguous().view(FLOATS[kind.name]).float()
    blocks = packed_RN.reshape(-1, kind.nbytes)
    step = CHUNKS[packed_RN.device.type] // kind.weights
    parts = [DEQUANTISERS[kind.name](some) for some in blocks.split(step)]
    return torch.cat(parts).view(len(packed_RN), -1)


def _q8_0(blocks_B32: Tensor) -> tuple[Tensor, Tensor]:
    """Scale by the largest magnitude, 127 steps of it to each side; halves are rounded away from zero."""
    scale_B1 = blocks_B32.abs().amax(-1, keepdim=True) / 127
    scaled = blocks_B32 * kquants.inverse(scale_B1)
    size = scaled.abs()
    whole = size.floor()
    codes = scaled.sign() * (whole + (2 * (size - whole)).floor())
    half = scale_B1.half()
    return torch.cat([half.view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], -1), half


def _from_q8_0(packed_BN: Tensor) -> Tensor:
    return kquants.halves(packed_BN[:, :2]) * packed_BN[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks_B32: Tensor) -> tuple[Tensor, Tensor]:
    """The number of largest magnitude (of two, the first) is code 0, which stands for minus eight steps."""
    size = blocks_B32.abs()
    places = torch.arange(32, device=size.device).expand_as(size)
    first = torch.where(size == size.amax(-1, keepdim=True), places, 32).amin(-1, keepdim=True)
    scale_B1 = blocks_B32.gather(-1, first) / -8
    codes = (blocks_B32 * kquants.inverse(scale_B1) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    half = scale_B1.half()
    return torch.cat([half.view(torch.uint8), codes[:, :16] | codes[:, 16:] << 4], -1), half


def _from_q4_0(packed_BN: Tensor) -> Tensor:
    codes = torch.cat([packed_BN[:, 2:] & 15, packed_BN[:, 2:] >> 4], -1)
    return kquants.halves(packed_BN[:, :2]) * (codes.float() - 8)


QUANTISERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "q8_0": _q8_0, "q4_0": _q4_0, "q4_k": kquants.q4_k, "q5_k": kquants.q5_k, "q6_k": kquants.q6_k,
}  # fmt: skip
"""fp32 blocks to their bytes and to the 16-bit floats among these."""
DEQUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "q8_0": _from_q8_0, "q4_0": _from_q4_0, "q4_k": kquants.from_q4_k, "q5_k": kquants.from_q5_k,
    "q6_k": kquants.from_q6_k,
}  # fmt: skip
