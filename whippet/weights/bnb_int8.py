"""Checkpoints that bitsandbytes has quantised to 8 bit (LLM.int8()), read without it into ``Int8Tensor``.

For a module ``M`` such a checkpoint holds ``M.weight`` (codes, int8 ``[N, K]``), ``M.SCB`` (fp32 ``[N]``, the largest
|weight| of each row) and ``M.weight_format`` (one byte; 0, by rows, is the only form that today's versions write).
Modules that were skipped (``llm_int8_skip_modules``) are there in 16 bit and have no SCB. What dtype a quantised weight
had is not told: bitsandbytes computes in fp16 then, and so its weights are made numbers of fp16 by default; here they
are of fp32, which rounds nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from whippet.errors import ModelError
from whippet.kernels.int8 import THRESHOLD, Int8Tensor, dequantize_int8
from whippet.weights.hf import CheckpointReader

__all__ = ["Int8Tensor", "check", "companions", "dequantize_int8", "is_int8", "read", "threshold"]

BY_ROWS = 0


def threshold(quantisation: dict[str, Any], where: str) -> float:
    """``llm_int8_threshold`` of a ``quantization_config``."""
    value = quantisation.get("llm_int8_threshold", THRESHOLD)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ModelError(f"{where}: llm_int8_threshold is {str(value)[:60]}, and must be a number of 0 or more")
    return float(value)


def is_int8(reader: CheckpointReader, name: str) -> bool:
    """Whether the tensor ``name`` has a companion of the 8-bit form."""
    return bool(companions(reader, name))


def companions(reader: CheckpointReader, name: str) -> set[str]:
    """``SCB`` and ``weight_format`` of the module whose weight is ``name``."""
    if not name.endswith(".weight"):
        return set()
    found = (name.removesuffix("weight") + part for part in ("SCB", "weight_format"))
    return {part for part in found if part in reader.tensors}


def check(reader: CheckpointReader, name: str, shape: tuple[int, ...]) -> None:
    """ModelError unless the matrix has ``shape`` and its companions fit. Reads one byte."""
    where, info = f"{reader.files[name]}: {name}", reader.tensors[name]
    if info.dtype != "I8" or info.shape != shape:
        raise ModelError(f"{where} has an SCB and is {info.dtype} {list(info.shape)}; wanted I8 {list(shape)}")
    scales, form = (name.removesuffix("weight") + part for part in ("SCB", "weight_format"))
    if scales not in reader.tensors:
        raise ModelError(f"{reader.folder}: the tensor {scales!r} of a quantised matrix is missing")
    met = reader.tensors[scales]
    if met.dtype != "F32" or math.prod(met.shape) != shape[0]:
        raise ModelError(f"{where}: SCB is {met.dtype} {list(met.shape)}, wanted F32 of {shape[0]}")
    if form not in reader.tensors:
        return
    met = reader.tensors[form]
    if met.dtype != "U8" or met.nbytes != 1 or int(reader.tensor(form)) != BY_ROWS:
        raise ModelError(f"{where}: weight_format is none that whippet reads; wanted the byte {BY_ROWS} (by rows)")


def read(
    reader: CheckpointReader,
    name: str,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    threshold: float = THRESHOLD,
) -> Int8Tensor:
    """The quantised matrix ``name``, which must have ``shape``, on ``device``. ModelError for NaN or infinity in it."""
    check(reader, name, shape)
    scales = name.removesuffix("weight") + "SCB"
    absmax = reader.tensor(scales).flatten()
    if not bool(absmax.isfinite().all()):
        raise ModelError(f"{reader.files[scales]}: {scales} holds NaN or infinity")
    return Int8Tensor(reader.tensor(name, device), absmax.to(device), torch.float32, threshold)
