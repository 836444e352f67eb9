"""One weight of ours from the tensors of a checkpoint: read, joined by rows, and held as it is to be held.

In: a reader, an entry of the table of names, a device. Out: a tensor, or a quantised one, of which parts that are
quantised so already keep their codes, and others are dequantised first. ModelError names what is not finite.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.kernels import fp8_tensor, int8_tensor
from whippet.kernels.fp8_tensor import FP8Tensor, quantize_fp8
from whippet.kernels.int8_tensor import Int8Tensor, quantize_int8
from whippet.kernels.nf4 import NF4Tensor, dequantize_nf4, join_rows, quantize_nf4
from whippet.options import Base
from whippet.weights import bnb
from whippet.weights.hf import CheckpointReader
from whippet.weights.names import Entry, Part

Held = TypeVar("Held", NF4Tensor, Int8Tensor, FP8Tensor)


def may_quantise(reader: CheckpointReader, entry: Entry, kind: bnb.Kind | None, wanted: Base) -> bool:
    """Whether a matrix may be held as ``wanted``: of a checkpoint that is quantised so, only those that it holds so
    itself; of any other, all."""
    return kind != wanted or all(bnb.kind_of(reader, part.name) == kind for part in entry.parts)


def nf4(reader: CheckpointReader, entry: Entry, device: torch.device) -> NF4Tensor:
    """A matrix in nf4, each part as bitsandbytes would quantise it, or has."""
    parts = []
    for part in entry.parts:
        if bnb.kind_of(reader, part.name) == "nf4":
            parts.append(bnb.read_nf4(reader, part.name, part.shape, device))
        else:
            parts.append(quantize_nf4(_numbers(reader, part, device), name=f"{reader.files[part.name]}: {part.name}"))
    return parts[0] if len(parts) == 1 else join_rows(_of_one_dtype(parts))


def int8(reader: CheckpointReader, entry: Entry, device: torch.device, threshold: float) -> Int8Tensor:
    """A matrix in int8 by rows; ``threshold``: of outliers in what it is multiplied with."""
    parts = []
    for part in entry.parts:
        if bnb.kind_of(reader, part.name) == "int8":
            parts.append(bnb.read_int8(reader, part.name, part.shape, device, threshold=threshold))
        else:
            named = f"{reader.files[part.name]}: {part.name}"
            parts.append(quantize_int8(_numbers(reader, part, device), threshold=threshold, name=named))
    return int8_tensor.join_rows(_of_one_dtype(parts))


def fp8(reader: CheckpointReader, entry: Entry, device: torch.device) -> FP8Tensor:
    """A matrix in FP8 by rows."""
    parts = []
    for part in entry.parts:
        if bnb.kind_of(reader, part.name) == "nf4":
            weight = dequantize_nf4(bnb.read_nf4(reader, part.name, part.shape, device), torch.float32)
        else:
            weight = _numbers(reader, part, device)
        parts.append(quantize_fp8(weight, name=f"{reader.files[part.name]}: {part.name}"))
    return fp8_tensor.join_rows(_of_one_dtype(parts))


def dense(reader: CheckpointReader, entry: Entry, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A weight in ``dtype``."""
    rows = sum(part.shape[0] for part in entry.parts)
    fused = torch.empty((rows, *entry.parts[0].shape[1:]), dtype=dtype, device=device)
    for part, (_, target) in zip(entry.parts, entry.split(fused), strict=True):
        target.copy_(_numbers(reader, part, device))
        # One pass without scratch. Of what is held, not of what was read: a weight may be too large for fp16.
        least, greatest = target.aminmax()
        if not bool(least.isfinite() & greatest.isfinite()):
            where = f"{reader.files[part.name]}: {part.name}"
            raise ModelError(f"{where} holds NaN, infinity or a number too large for {dtype}; wanted finite weights")
    return fused


def _of_one_dtype(parts: list[Held]) -> list[Held]:
    """Parts that were numbers of different dtypes, as in a checkpoint of which only some are in 8 bit, as of fp32."""
    one = {part.dtype for part in parts}
    return parts if len(one) == 1 else [replace(part, dtype=torch.float32) for part in parts]


def _numbers(reader: CheckpointReader, part: Part, device: torch.device) -> Tensor:
    """A tensor of the checkpoint in the dtype that it has, or had before it was quantised."""
    if bnb.kind_of(reader, part.name):
        return bnb.dense(reader, part.name, part.shape, device)
    return reader.tensor(part.name, device)
