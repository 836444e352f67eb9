"""A decoder over a quantised base as the tensors of a checkpoint in bitsandbytes' layout (``bnb.py``, ``bnb_int8.py``).

In: a decoder without adapters. Out: ``(name, tensor)`` in Hugging Face's names for ``weights/hf.py`` to write, and the
``quantization_config`` for its ``config.json``. What was read from such a checkpoint is written with the bytes that it
had, with two exceptions. A matrix of which only some parts were quantised is dense here, and is written so, in the
dtype that is asked for (the values of 4 bit stay, those of 8 bit are rounded to 16). And parts that do not end with
whole blocks of absmax (``nf4_tensor.join_rows``) hold it in fp32: they are written without the second quantisation, and
their values stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from whippet.errors import UsageError
from whippet.kernels import int8, nf4
from whippet.kernels.int8 import Int8Tensor
from whippet.kernels.nf4 import NESTED_BLOCK, NF4_CODE, NF4Tensor
from whippet.model.decoder import Decoder
from whippet.model.projection import Projection
from whippet.weights.bnb import STATE
from whippet.weights.bnb_int8 import BY_ROWS
from whippet.weights.names import Entry, table


@torch.no_grad()
def quantised_tensors(decoder: Decoder, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint on the CPU: quantised matrices as they are held, all else in ``dtype``.

    Raises UsageError if the decoder has adapters (added to 4 or 8 bit they would be rounded away), or a matrix in a
    form that bitsandbytes has not.
    """
    for entry in table(decoder.config):
        path, _, name = entry.ours.rpartition(".")
        module = decoder.get_submodule(path)
        if isinstance(module, Projection) and name == "weight" and module.quantised is not None:
            if module.adapter_items():
                raise UsageError(f"{path} has an adapter; bitsandbytes' layout holds the base alone")
            yield from _quantised(entry, module.quantised)
            continue
        held = module.dense if isinstance(module, Projection) and name == "weight" else getattr(module, name)
        for part, tensor in entry.split(held.detach()):
            yield part, tensor.to("cpu", dtype, copy=True)


def quantization_config(decoder: Decoder, dtype: torch.dtype) -> dict[str, Any]:
    """What ``config.json`` says of such a checkpoint; ``dtype``: what bitsandbytes is to compute in.

    Matrices that are dense here are listed as skipped, beside the output matrix, which always is.
    """
    held = dict(decoder.projections())
    quantised: list[object] = [p.quantised for p in held.values()]
    eight = [weight for weight in quantised if isinstance(weight, Int8Tensor)]
    four = [weight for p in held.values() if (weight := p.nf4) is not None]
    if bool(eight) == bool(four):
        raise UsageError("wanted a decoder whose base is held in nf4 or in int8, and not in both")
    skipped = [
        part.name.removesuffix(".weight")
        for entry in table(decoder.config)
        if entry.quantisable and held[entry.ours.removesuffix(".weight")].quantised is None
        for part in entry.parts
    ]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": bool(four),
        "load_in_8bit": bool(eight),
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": any(weight.nested_absmax is not None for weight in four),
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head", *skipped] if skipped else None,
        "llm_int8_threshold": eight[0].threshold if eight else int8.THRESHOLD,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }


def _quantised(entry: Entry, weight: object) -> Iterator[tuple[str, Tensor]]:
    start = 0
    for part in entry.parts:
        rows = slice(start, start + part.shape[0])
        start = rows.stop
        if isinstance(weight, NF4Tensor):
            yield from nf4_tensors(part.name, nf4.slice_rows(weight, rows.start, rows.stop).to("cpu"))
        elif isinstance(weight, Int8Tensor):
            yield from int8_tensors(part.name, int8.slice_rows(weight, rows.start, rows.stop).to("cpu"))
        else:
            raise UsageError(f"{part.name} is held as {type(weight).__name__}, which bitsandbytes' layout has not")


def nf4_tensors(name: str, weight: NF4Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that bitsandbytes writes for the matrix ``name``."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": weight.block_size,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    yield name, weight.codes.view(-1, 1)
    yield f"{name}.absmax", weight.absmax
    yield f"{name}.quant_map", torch.tensor(NF4_CODE, dtype=torch.float32)
    if weight.nested_absmax is not None and weight.nested_code is not None and weight.offset is not None:
        yield f"{name}.nested_absmax", weight.nested_absmax
        yield f"{name}.nested_quant_map", weight.nested_code.clone()  # one for all, which a file may not hold
        offset = weight.offset.flatten()[:1].item()  # parts have one, joined ones repeat it
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
    yield f"{name}{STATE}", torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def int8_tensors(name: str, weight: Int8Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that bitsandbytes writes for the matrix ``name``."""
    module = name.removesuffix("weight")
    yield name, weight.codes
    yield f"{module}SCB", weight.absmax
    yield f"{module}weight_format", torch.tensor(BY_ROWS, dtype=torch.uint8)
