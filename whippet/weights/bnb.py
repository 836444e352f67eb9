"""Checkpoints that bitsandbytes has already quantised to NF4, read without bitsandbytes.

For a matrix ``W`` such a checkpoint holds ``W`` (the codes, uint8 ``[n / 2, 1]``), ``W.absmax`` and ``W.quant_map``;
with double quantisation ``W.nested_absmax`` and ``W.nested_quant_map`` too; and ``W.quant_state.bitsandbytes__nf4``,
JSON as bytes, with shape, dtype, block sizes and offset. Modules that were skipped (``llm_int8_skip_modules``) are
there in 16 bit, and are known by having no quant_state. fp4 and 8 bit are not read yet.
"""

from __future__ import annotations

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


def read_nf4(reader: CheckpointReader, name: str, shape: tuple[int, ...], device: torch.device) -> NF4Tensor:
    """The quantised matrix ``name``, which must have ``shape``, on ``device``."""
    where = f"{reader.files[name]}: {name}"
    state = _state(reader, name, where)
    blocks = -(-_numel(shape) // BLOCK)
    wanted = {"shape": list(shape), "quant_type": "nf4", "blocksize": BLOCK}
    for key, value in wanted.items():
        if state.get(key) != value:
            raise ModelError(f"{where}: quant_state has {key} {str(state.get(key))[:60]}, wanted {value}")
    dtype = DTYPES.get(str(state.get("dtype")))
    if dtype is None:
        raise ModelError(f"{where}: quant_state has dtype {str(state.get('dtype'))[:60]}, wanted one of {list(DTYPES)}")
    if not torch.equal(_part(reader, name + ".quant_map", torch.float32, 16), torch.tensor(NF4_CODE)):
        raise ModelError(f"{where}: its quant_map is not the 16 levels of nf4")
    codes = _part(reader, name, torch.uint8, (_numel(shape) + 1) // 2, device)
    if name + ".nested_absmax" not in reader.tensors:
        absmax = _part(reader, name + ".absmax", torch.float32, blocks, device)
        return NF4Tensor(codes, absmax, shape, dtype)
    offset = state.get("nested_offset")
    if state.get("nested_blocksize") != NESTED_BLOCK or not isinstance(offset, (int, float)):
        raise ModelError(f"{where}: quant_state needs nested_blocksize {NESTED_BLOCK} and a nested_offset")
    return NF4Tensor(
        codes,
        _part(reader, name + ".absmax", torch.uint8, blocks, device),
        shape,
        dtype,
        nested_absmax=_part(reader, name + ".nested_absmax", torch.float32, -(-blocks // NESTED_BLOCK), device),
        nested_code=_part(reader, name + ".nested_quant_map", torch.float32, 256, device),
        offset=torch.tensor(float(offset), dtype=torch.float32, device=device),
    )


def _state(reader: CheckpointReader, name: str, where: str) -> dict[str, Any]:
    info = reader.tensors[name + STATE]
    if info.dtype != "U8" or info.nbytes > 4096:
        raise ModelError(f"{where}: its quant_state must be a few bytes of JSON")
    return parse_json(bytes(reader.tensor(name + STATE).flatten().tolist()), f"{where}: quant_state")


def _part(
    reader: CheckpointReader, name: str, dtype: torch.dtype, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """A flat copy of one of the tensors that make up a quantised matrix."""
    if name not in reader.tensors:
        raise ModelError(f"{reader.folder}: the tensor {name!r} of a quantised matrix is missing")
    tensor = reader.tensor(name, device)
    if tensor.dtype != dtype or tensor.numel() != count:
        raise ModelError(
            f"{reader.files[name]}: {name} is {tensor.dtype} of {tensor.numel()} numbers, wanted {dtype} of {count}"
        )
    return tensor.flatten().clone()


def _numel(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1]
