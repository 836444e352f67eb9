"""NF4 weights in memory: the parts, what absmax they stand for, and joining or cutting them by rows.

Weights lie in row-major order in blocks (64 by default), two 4-bit indices a byte, the first in the high half. absmax,
one number a block, is fp32 or (double quantisation) 8 bit with a scale for each 256 of them and an offset.

A fused projection is the q, k and v of a checkpoint laid one below the other. Each came with its own scales and offset;
``join_rows`` keeps them all, so that a joined tensor dequantises to its parts bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.kernels.nf4_rounding import BLOCK, NESTED_BLOCK


@dataclass(frozen=True)
class NF4Tensor:
    """Weights in NF4. Plain if ``nested_absmax`` is None, else doubly quantised."""

    codes: Tensor
    """uint8 [ceil(weights / 2)]: two indices a byte, the first in the high half."""
    absmax: Tensor
    """[blocks]: fp32, or uint8 indices into ``nested_code``."""
    shape: tuple[int, ...]
    """Shape of the weights."""
    dtype: torch.dtype
    """Dtype that the weights had."""
    nested_absmax: Tensor | None = None
    """fp32 [blocks of 256 absmax]."""
    nested_code: Tensor | None = None
    """fp32 [256]."""
    offset: Tensor | None = None
    """fp32, a scalar or one number for each nested block (parts that were joined keep their own)."""
    block_size: int = BLOCK
    fp8_rows: Tensor | None = None
    """fp32 [2, rows] if products are to be computed in FP8: the largest |weight| of each row, and 1 / 448 of it
    (``nf4_fp8.py``)."""

    def __post_init__(self) -> None:
        blocks = -(-self.numel // self.block_size)
        if self.codes.shape != ((self.numel + 1) // 2,) or self.absmax.shape != (blocks,):
            raise ModelError(
                f"NF4 weights of shape {list(self.shape)} need {(self.numel + 1) // 2} code bytes and {blocks} absmax, "
                f"met shapes {list(self.codes.shape)} and {list(self.absmax.shape)}"
            )

    @property
    def numel(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the parts take."""
        return sum(part.nbytes for part in self._parts().values())

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device | str) -> NF4Tensor:
        """The same weights on ``device``."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in self._parts().items()}
        return replace(self, **moved)

    def _parts(self) -> dict[str, Tensor]:
        names = ("codes", "absmax", "nested_absmax", "nested_code", "offset", "fp8_rows")
        return {name: part for name in names if (part := getattr(self, name)) is not None}


def plain_absmax(weight: NF4Tensor) -> Tensor:
    """absmax in fp32 [blocks], dequantised if it is nested."""
    if weight.nested_absmax is None:
        return weight.absmax
    assert weight.nested_code is not None and weight.offset is not None
    levels = weight.nested_code[weight.absmax.int()]
    blocks = torch.arange(len(levels), device=levels.device) // NESTED_BLOCK
    return levels * weight.nested_absmax[blocks] + weight.offset.expand(len(weight.nested_absmax))[blocks]


def fold_absmax(weight: NF4Tensor) -> NF4Tensor:
    """The same weights, bit for bit, with absmax in fp32 (0.37 bit more a weight)."""
    return replace(weight, absmax=plain_absmax(weight), nested_absmax=None, nested_code=None, offset=None)


def join_rows(parts: Sequence[NF4Tensor]) -> NF4Tensor:
    """Lay weights of the same width one below the other; dequantises to the parts' own values, bit for bit.

    Each part must end at a block's border. Double quantisation is kept where all parts have it with the same levels and
    all but the last fill their last nested block; else absmax is folded to fp32. Raises ModelError otherwise.
    """
    first = parts[0]
    for part in parts:
        if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype or part.block_size != first.block_size:
            met = f"{list(first.shape)} {first.dtype} and {list(part.shape)} {part.dtype}"
            raise ModelError(f"NF4 parts to be joined need one width, dtype and block size, met {met}")
    if any(part.numel % part.block_size for part in parts[:-1]):
        shapes = [list(part.shape) for part in parts]
        raise ModelError(f"NF4 parts of shapes {shapes} do not end at a border of {first.block_size} weights")
    if not _nested_alike(parts):
        parts = [fold_absmax(part) for part in parts]
    return replace(
        parts[0],
        codes=torch.cat([part.codes for part in parts]),
        absmax=torch.cat([part.absmax for part in parts]),
        shape=(sum(part.shape[0] for part in parts), *first.shape[1:]),
        fp8_rows=None,
        **_joined_nested(parts),
    )


def slice_rows(weight: NF4Tensor, start: int, stop: int) -> NF4Tensor:
    """Rows ``start`` to ``stop``, sharing memory where it can; both ends must lie at a block's border (or the end)."""
    width = prod(weight.shape[1:])
    first, last = start * width, stop * width
    size = weight.block_size
    if first % size or (last % size and last != weight.numel):
        raise ModelError(f"rows {start} to {stop} of NF4 {list(weight.shape)} cut a block of {size} weights")
    blocks = slice(first // size, -(-last // size))
    if weight.nested_absmax is not None and blocks.start % NESTED_BLOCK:
        weight = fold_absmax(weight)
    nested: dict[str, Any] = {}
    if weight.nested_absmax is not None and weight.offset is not None:
        rows = slice(blocks.start // NESTED_BLOCK, -(-blocks.stop // NESTED_BLOCK))
        offset = weight.offset if weight.offset.ndim == 0 else weight.offset[rows]
        nested = {"nested_absmax": weight.nested_absmax[rows], "offset": offset}
    if weight.fp8_rows is not None:
        nested["fp8_rows"] = weight.fp8_rows[:, start:stop].contiguous()
    codes = weight.codes[first // 2 : (last + 1) // 2]
    shape = (stop - start, *weight.shape[1:])
    return replace(weight, codes=codes, absmax=weight.absmax[blocks], shape=shape, **nested)


def _nested_alike(parts: Sequence[NF4Tensor]) -> bool:
    code = parts[0].nested_code
    return all(
        code is not None and part.nested_code is not None and torch.equal(part.nested_code, code) for part in parts
    ) and all(len(part.absmax) % NESTED_BLOCK == 0 for part in parts[:-1])


def _joined_nested(parts: Sequence[NF4Tensor]) -> dict[str, Any]:
    nested = [(p.nested_absmax, p.offset) for p in parts if p.nested_absmax is not None and p.offset is not None]
    if not nested:
        return {}
    offsets = [offset.expand(len(absmax)) for absmax, offset in nested]
    return {"nested_absmax": torch.cat([absmax for absmax, _ in nested]), "offset": torch.cat(offsets)}
