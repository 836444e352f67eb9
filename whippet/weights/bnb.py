"""Checkpoints that bitsandbytes has already quantised to NF4, read without bitsandbytes.

For a matrix ``W`` such a checkpoint holds ``W`` (the codes, uint8 ``[n / 2, 1]``), ``W.absmax`` and ``W.quant_map``;
with double quantisation ``W.nested_absmax`` and ``W.nested_quant_map`` too; and ``W.quant_state.bitsandbytes__nf4``,
JSON as bytes, with shape, dtype, block sizes and offset. Modules that were skipped (``llm_int8_skip_modules``) are
there in 16 bit, and are known by having no quant_state. fp4 and 8 bit are not read yet.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.kernels.nf4 import BLOCK, NESTED_BLOCK, NF4_CODE, NF4Tensor
from whippet.weights.files import parse_json
from whippet.weights.hf import CheckpointReader

STATE = ".quant_state.bitsandbytes__nf4"
COMPANIONS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE)
FOREIGN = (".quant_state.bitsandbytes__fp4", ".SCB", ".weight_format")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_quantisation(config: dict[str, Any], where: str) -> bool:
    """Whether a ``config.json`` announces NF4 of bitsandbytes; ModelError if it announces another quantisation."""
    quantisation = config.get("quantization_config")
    if not quantisation:
        return False
    if not isinstance(quantisation, dict):
        raise ModelError(f"{where}: quantization_config must be a table")
    method = quantisation.get("quant_method", "bitsandbytes" if "load_in_4bit" in quantisation else None)
    if method != "bitsandbytes":
        raise ModelError(f"{where}: quantised by {method!r}; whippet reads bitsandbytes nf4, and 16-bit checkpoints")
    if quantisation.get("load_in_8bit"):
        raise ModelError(f"{where}: quantised to 8 bit by bitsandbytes, which is not read yet; nf4 is")
    kind = quantisation.get("bnb_4bit_quant_type", "fp4")
    if not quantisation.get("load_in_4bit") or kind != "nf4":
        raise ModelError(f"{where}: quantised to {kind!r} by bitsandbytes, which is not read yet; nf4 is")
    return True


def is_quantised(reader: CheckpointReader, name: str) -> bool:
    """Whether the tensor ``name`` is held in NF4; ModelError if in another quantised form."""
    for suffix in FOREIGN:
        if name + suffix in reader.tensors or name.removesuffix(".weight") + suffix in reader.tensors:
            raise ModelError(f"{reader.files[name]}: {name} is quantised with {suffix[1:]}, which is not read yet")
    return name + STATE in reader.tensors


def companions(reader: CheckpointReader, name: str) -> set[str]:
    """The tensors that describe the codes of ``name``."""
    return {name + suffix for suffix in COMPANIONS if name + suffix in reader.tensors}


def check_nf4(reader: CheckpointReader, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The quant_state of the matrix ``name``, which must have ``shape``. ModelError if it or a companion does not fit.

    Reads a few bytes of each matrix, whatever its size: what else is held is known from the header.
    """
    where = f"{reader.files[name]}: {name}"
    state = _state(reader, name, where)
    blocks = -(-_numel(shape) // BLOCK)
    wanted = {"shape": list(shape), "quant_type": "nf4", "blocksize": BLOCK}
    for key, value in wanted.items():
        if state.get(key) != value:
            raise ModelError(f"{where}: quant_state has {key} {str(state.get(key))[:60]}, wanted {value}")
    if str(state.get("dtype")) not in DTYPES:
        raise ModelError(f"{where}: quant_state has dtype {str(state.get('dtype'))[:60]}, wanted one of {list(DTYPES)}")
    _check_part(reader, name, "U8", (_numel(shape) + 1) // 2)
    _check_part(reader, name + ".quant_map", "F32", 16)
    if not torch.equal(reader.tensor(name + ".quant_map").flatten(), torch.tensor(NF4_CODE)):
        raise ModelError(f"{where}: its quant_map is not the 16 levels of nf4")
    if name + ".nested_absmax" not in reader.tensors:
        _check_part(reader, name + ".absmax", "F32", blocks)
        return state
    offset = state.get("nested_offset")
    if state.get("nested_blocksize") != NESTED_BLOCK or not _is_finite(offset):
        raise ModelError(f"{where}: quant_state needs nested_blocksize {NESTED_BLOCK} and a nested_offset")
    _check_part(reader, name + ".absmax", "U8", blocks)
    _check_part(reader, name + ".nested_absmax", "F32", -(-blocks // NESTED_BLOCK))
    _check_part(reader, name + ".nested_quant_map", "F32", 256)
    return state


def read_nf4(reader: CheckpointReader, name: str, shape: tuple[int, ...], device: torch.device) -> NF4Tensor:
    """The quantised matrix ``name``, which must have ``shape``, on ``device``. ModelError for NaN or infinity in it."""
    state = check_nf4(reader, name, shape)
    dtype = DTYPES[state["dtype"]]
    codes, absmax = _part(reader, name, device), _part(reader, name + ".absmax", device)
    if name + ".nested_absmax" not in reader.tensors:
        return NF4Tensor(codes, absmax, shape, dtype)
    return NF4Tensor(
        codes,
        absmax,
        shape,
        dtype,
        nested_absmax=_part(reader, name + ".nested_absmax", device),
        nested_code=_part(reader, name + ".nested_quant_map", device),
        offset=torch.tensor(float(state["nested_offset"]), dtype=torch.float32, device=device),
    )


def _state(reader: CheckpointReader, name: str, where: str) -> dict[str, Any]:
    info = reader.tensors[name + STATE]
    if info.dtype != "U8" or info.nbytes > 4096:
        raise ModelError(f"{where}: its quant_state must be a few bytes of JSON")
    return parse_json(bytes(reader.tensor(name + STATE).flatten().tolist()), f"{where}: quant_state")


def _check_part(reader: CheckpointReader, name: str, dtype: str, count: int) -> None:
    """One of the tensors that make up a quantised matrix is there, of ``count`` numbers."""
    if name not in reader.tensors:
        raise ModelError(f"{reader.folder}: the tensor {name!r} of a quantised matrix is missing")
    info = reader.tensors[name]
    met = math.prod(info.shape)
    if info.dtype != dtype or met != count:
        raise ModelError(f"{reader.files[name]}: {name} is {info.dtype} of {met} numbers, wanted {dtype} of {count}")


def _part(reader: CheckpointReader, name: str, device: torch.device) -> Tensor:
    """A flat copy of one of those tensors."""
    tensor = reader.tensor(name, device).flatten().clone()
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ModelError(f"{reader.files[name]}: {name} holds NaN or infinity")
    return tensor


def _is_finite(value: Any) -> bool:
    """Whether a number of the JSON is one in fp32 too; Python reads NaN, Infinity and integers of any length."""
    return type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max


def _numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
