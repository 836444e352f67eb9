"""GGUF, what llama.cpp and those around it read: one file with weights, tokenizer and chat template.

Written: tensor by tensor as they come, each quantised when its turn is, so that one fused weight is in memory, and by
the ``gguf`` package (extra ``gguf``), whose writer knows the layout. Read: by our own reader (``gguf_read.py``), into
a decoder made from nothing but the file. ``docs/design/gguf.md`` tells families and types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whippet.errors import MissingExtra, ModelError
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.weights.files import written_aside
from whippet.weights.gguf_blocks import KINDS, Kind, quantise
from whippet.weights.gguf_meta import config_of, rotary_tensors
from whippet.weights.gguf_mix import MIXES, kind_of
from whippet.weights.gguf_names import arranged, gguf_name, restored
from whippet.weights.gguf_read import GGUFFile
from whippet.weights.names import table

Plan = dict[str, tuple[Kind, tuple[int, ...]]]
"""Of each tensor, by its name in the file and in its order, the kind and the shape."""


def planned(config: ModelConfig, mix: str) -> Plan:
    """What the file of a model holds."""
    rotary = {name: (KINDS["f32"], tuple(tensor.shape)) for name, tensor in rotary_tensors(config).items()}
    plan: Plan = {}
    for entry in table(config):
        for part in entry.parts:
            name = gguf_name(part.name, config)
            plan[name] = (kind_of(name, part.shape, mix, config), part.shape)
    return rotary | plan


def substituted(plan: Plan, mix: str) -> tuple[str, ...]:
    """What to say of matrices that could not have their type."""
    wanted = KINDS[MIXES[mix].usual]
    others = [kind for kind, shape in plan.values() if len(shape) > 1 and shape[-1] % wanted.weights]
    if not others:
        return ()
    held = " or ".join(sorted({kind.name for kind in others}))
    return (f"{len(others)} matrices have rows of no whole blocks of {wanted.weights} numbers and are {held} instead",)


def planned_bytes(plan: Plan) -> int:
    """Bytes of all tensors."""
    return sum(_rows(shape) * kind.row_bytes(shape[-1]) for kind, shape in plan.values())


def packed(
    config: ModelConfig, tensors: Iterable[tuple[str, Tensor]], plan: Plan, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of ``plan`` as the bytes that go into the file, uint8 on the CPU. ``tensors``: fp32, by Hugging
    Face's names in the order of ``names.table``; they are quantised on ``device``."""
    for name, tensor in rotary_tensors(config).items():
        yield name, quantise(tensor[None], KINDS["f32"], where=name)
    for theirs, tensor in tensors:
        name = gguf_name(theirs, config)
        rows = arranged(theirs, tensor.to(device), config)
        yield name, quantise(rows.view(_rows(rows.shape), -1), plan[name][0], where=name).cpu()


def write_gguf(path: Path, pairs: dict[str, Any], plan: Plan, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write one file, whole or not at all. ``tensors``: the bytes of each in the order of ``plan``."""
    gguf = import_gguf()
    arch = pairs["general.architecture"]
    with written_aside(path) as aside:
        writer = gguf.GGUFWriter(aside, arch)
        try:
            for key, value in pairs.items():
                if key != "general.architecture":
                    _add(writer, gguf, key, value)
            for name, (kind, shape) in plan.items():
                bytes_shape = (*shape[:-1], kind.row_bytes(shape[-1]))
                number = gguf.GGMLQuantizationType(kind.number)
                writer.add_tensor_info(
                    name, bytes_shape, np.dtype(np.uint8), _rows(shape) * bytes_shape[-1], raw_dtype=number
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            left = iter(plan)
            for name, tensor in tensors:
                assert name == next(left), name
                writer.write_tensor_data(tensor.numpy())
        finally:
            writer.close()


def import_gguf() -> Any:
    """The package. MissingExtra if it is not there."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("gguf", "gguf", "--to gguf") from error
    return gguf


def load_gguf(file: GGUFFile, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that a file describes, dequantised to fp32. ModelError for missing, strange or misshapen tensors."""
    config = config_of(file)
    parts = {gguf_name(part.name, config): part for entry in table(config) for part in entry.parts}
    extra = set(rotary_tensors(config)) | {"rope_freqs.weight"}
    for name, part in parts.items():
        if name not in file.tensors:
            raise ModelError(f"{file.path}: the tensor {name!r} is missing")
        if file.tensors[name].shape != part.shape:
            shape = list(file.tensors[name].shape)
            raise ModelError(f"{file.path}: {name} has shape {shape}, and its metadata want {list(part.shape)}")
    if strange := sorted(set(file.tensors) - set(parts) - extra):
        raise ModelError(f"{file.path}: {len(strange)} unexpected tensors, the first is {strange[0]!r}")
    decoder = Decoder(config, compute_dtype=torch.float32, device="meta", dtype=torch.float32)
    for entry in table(config):
        joined = [
            restored(part.name, file.tensor(gguf_name(part.name, config), device), config) for part in entry.parts
        ]
        path, _, name = entry.ours.rpartition(".")
        setattr(decoder.get_submodule(path), name, nn.Parameter(torch.cat(joined), requires_grad=False))
    return decoder.requires_grad_(False).eval()


def _rows(shape: Iterable[int]) -> int:
    number = 1
    for extent in tuple(shape)[:-1]:
        number *= extent
    return number


def _add(writer: Any, gguf: Any, key: str, value: Any) -> None:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        if value:
            writer.add_array(key, value)
        return
    kind = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}[type(value)]
    writer.add_key_value(key, value, kind)
