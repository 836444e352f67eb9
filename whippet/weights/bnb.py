"""Checkpoints that bitsandbytes has already quantised, read without bitsandbytes: nf4 and fp4 here, 8 bit in
``bnb_int8.py``, which says what such files hold. Written by ``bnb_write.py``.

For a matrix ``W`` a 4-bit checkpoint holds ``W`` (the codes, uint8 ``[n / 2, 1]``), ``W.absmax`` and ``W.quant_map``;
with double quantisation ``W.nested_absmax`` and ``W.nested_quant_map`` too; and ``W.quant_state.bitsandbytes__nf4`` (or
``__fp4``), JSON as bytes, with shape, dtype, block sizes and offset. Modules that were skipped
(``llm_int8_skip_modules``) are there in 16 bit, and are known by having no quant_state.

Nf4 is held as it is. Fp4 differs in its 16 levels alone, but it is dequantised when it is read, to the dtype that it
had, as bitsandbytes dequantises it: the kernels know the levels of nf4, fp4 is the less exact of the two and nobody's
first choice, and a table more for each of them would cost every nf4 product. (docs/design/checkpoints.md)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.kernels.nf4 import BLOCK, NESTED_BLOCK, NF4_CODE, NF4Tensor, dequantize_nf4, plain_absmax
from whippet.weights import bnb_int8
from whippet.weights.bnb_int8 import read as read_int8
from whippet.weights.bnb_int8 import threshold as threshold_of
from whippet.weights.files import parse_json
from whippet.weights.hf import CheckpointReader

__all__ = ["Kind", "check", "companions", "dense", "int8_threshold", "kind_of", "quantisation", "read_int8", "read_nf4"]

Kind = Literal["nf4", "fp4", "int8"]
FP4_CODE = tuple(sign * level / 12 for sign in (1, -1) for level in (0, 0.0625, 8, 12, 4, 6, 2, 3))
"""The levels of fp4 (a sign, two bits of exponent, one of mantissa), the largest being 1."""
CODES = {"nf4": NF4_CODE, "fp4": FP4_CODE}
STATES = {kind: f".quant_state.bitsandbytes__{kind}" for kind in CODES}
STATE = STATES["nf4"]
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *STATES.values())
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CHUNK = 1 << 20
"""Bytes of fp4 that are dequantised at once, and whole blocks of both sizes."""


def quantisation(config: dict[str, Any], where: str) -> Kind | None:
    """What quantisation of bitsandbytes a ``config.json`` announces, if any; ModelError if it announces another."""
    found = config.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, dict):
        raise ModelError(f"{where}: quantization_config must be a table")
    announced = "load_in_4bit" in found or "load_in_8bit" in found
    method = found.get("quant_method", "bitsandbytes" if announced else None)
    if method != "bitsandbytes":
        raise ModelError(
            f"{where}: quantised by {str(method)[:60]!r}; whippet reads bitsandbytes nf4, fp4 and int8, and 16-bit "
            "checkpoints"
        )
    if found.get("load_in_8bit"):
        bnb_int8.threshold(found, where)
        return "int8"
    kind = found.get("bnb_4bit_quant_type", "fp4")
    if not found.get("load_in_4bit") or kind not in ("nf4", "fp4"):
        raise ModelError(f"{where}: quantised to {str(kind)[:60]!r} by bitsandbytes; whippet reads nf4, fp4 and int8")
    return "nf4" if kind == "nf4" else "fp4"


def int8_threshold(config: dict[str, Any], where: str) -> float:
    """From which size on numbers are outliers, in a ``config.json`` that announces 8 bit."""
    return threshold_of(config["quantization_config"], where)


def kind_of(reader: CheckpointReader, name: str) -> Kind | None:
    """How the tensor ``name`` is held; None if as plain numbers. ModelError if in two ways."""
    four: tuple[Kind, ...] = ("nf4", "fp4")
    found = [kind for kind in four if name + STATES[kind] in reader.tensors]
    if bnb_int8.is_int8(reader, name):
        found.append("int8")
    if len(found) > 1:
        raise ModelError(f"{reader.files[name]}: {name} is described as {' and as '.join(found)}")
    return found[0] if found else None


def companions(reader: CheckpointReader, name: str) -> set[str]:
    """The tensors that describe the codes of ``name``."""
    return {name + suffix for suffix in PARTS if name + suffix in reader.tensors} | bnb_int8.companions(reader, name)


def check(reader: CheckpointReader, name: str, shape: tuple[int, ...]) -> None:
    """The quantised matrix ``name`` must have ``shape``. ModelError if it or a companion does not fit."""
    kind = kind_of(reader, name)
    if kind == "int8":
        bnb_int8.check(reader, name, shape)
    elif kind is not None:
        _check_4bit(reader, name, shape, kind)


def read_nf4(reader: CheckpointReader, name: str, shape: tuple[int, ...], device: torch.device) -> NF4Tensor:
    """The quantised matrix ``name``, which must have ``shape``, on ``device``. ModelError for NaN or infinity in it."""
    return _read_4bit(reader, name, shape, device, "nf4")


def dense(reader: CheckpointReader, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The matrix ``name``, quantised in whatever way, as numbers of the dtype that it had before."""
    kind = kind_of(reader, name)
    if kind == "int8":
        return bnb_int8.dequantize_int8(bnb_int8.read(reader, name, shape, device))
    if kind == "nf4":
        return dequantize_nf4(read_nf4(reader, name, shape, device))
    return _dequantize_fp4(_read_4bit(reader, name, shape, device, "fp4"))


def _dequantize_fp4(weight: NF4Tensor) -> Tensor:
    """The parts of ``weight`` read with the levels of fp4: products in fp32, rounded once."""
    absmax, levels = plain_absmax(weight), torch.tensor(FP4_CODE, dtype=torch.float32, device=weight.device)
    out = torch.empty(2 * len(weight.codes), dtype=weight.dtype, device=weight.device)
    for start in range(0, len(weight.codes), CHUNK):
        codes = weight.codes[start : start + CHUNK].int()
        indices = torch.stack((codes >> 4, codes & 15), 1).flatten()
        first = 2 * start // weight.block_size
        scales = absmax[first : first + -(-len(indices) // weight.block_size)]
        wide = scales.repeat_interleave(weight.block_size)[: len(indices)]
        out[2 * start : 2 * start + len(indices)] = levels[indices] * wide
    return out[: weight.numel].view(weight.shape)


def _check_4bit(reader: CheckpointReader, name: str, shape: tuple[int, ...], kind: str) -> dict[str, Any]:
    """The quant_state of ``name``. Reads a few bytes, whatever the size: what else is held is known from the header."""
    where = f"{reader.files[name]}: {name}"
    state = _state(reader, name + STATES[kind], where)
    blocks = -(-math.prod(shape) // BLOCK)
    wanted = {"shape": list(shape), "quant_type": kind, "blocksize": BLOCK}
    for key, value in wanted.items():
        if state.get(key) != value:
            raise ModelError(f"{where}: quant_state has {key} {str(state.get(key))[:60]}, wanted {value}")
    if str(state.get("dtype")) not in DTYPES:
        raise ModelError(f"{where}: quant_state has dtype {str(state.get('dtype'))[:60]}, wanted one of {list(DTYPES)}")
    _check_codes(reader, name, (math.prod(shape) + 1) // 2)
    _check_part(reader, name + ".quant_map", "F32", 16)
    if not torch.equal(reader.tensor(name + ".quant_map").flatten(), torch.tensor(CODES[kind], dtype=torch.float32)):
        raise ModelError(f"{where}: its quant_map is not the 16 levels of {kind}")
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


def _read_4bit(
    reader: CheckpointReader, name: str, shape: tuple[int, ...], device: torch.device, kind: str
) -> NF4Tensor:
    state = _check_4bit(reader, name, shape, kind)
    dtype = DTYPES[state["dtype"]]
    codes = reader.tensor(name, device).flatten().view(torch.uint8)
    absmax = _part(reader, name + ".absmax", device)
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


def _check_codes(reader: CheckpointReader, name: str, count: int) -> None:
    """Codes are bytes, or other numbers that those bytes spell (``bnb_4bit_quant_storage``)."""
    info = reader.tensors[name]
    if info.dtype not in ("U8", "BF16", "F16", "F32") or info.nbytes != count:
        raise ModelError(
            f"{reader.files[name]}: {name} is {info.dtype} of {math.prod(info.shape)} numbers, wanted U8 of {count}"
        )


def _state(reader: CheckpointReader, name: str, where: str) -> dict[str, Any]:
    info = reader.tensors[name]
    if info.dtype != "U8" or info.nbytes > 4096:
        raise ModelError(f"{where}: its quant_state must be a few bytes of JSON")
    return parse_json(bytes(reader.tensor(name).flatten().tolist()), f"{where}: quant_state")


def _check_part(reader: CheckpointReader, name: str, dtype: str, count: int) -> None:
    """One of the tensors that make up a quantised matrix is there, of ``count`` numbers."""
    if name not in reader.tensors:
        raise ModelError(f"{reader.folder}: the tensor {name!r} of a quantised matrix is missing")
    info = reader.tensors[name]
    met = math.prod(info.shape)
    if info.dtype != dtype or met != count:
        raise ModelError(f"{reader.files[name]}: {name} is {info.dtype} of {met} numbers, wanted {dtype} of {count}")


def _part(reader: CheckpointReader, name: str, device: torch.device) -> Tensor:
    """One of those tensors, flat. It is looked at before it goes to a GPU, which would have to be waited for."""
    tensor = reader.tensor(name).flatten()
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ModelError(f"{reader.files[name]}: {name} holds NaN or infinity")
    return tensor.to(device)


def _is_finite(value: Any) -> bool:
    """Whether a number of the JSON is one in fp32 too; Python reads NaN, Infinity and integers of any length."""
    return type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max
