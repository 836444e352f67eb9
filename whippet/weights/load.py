"""From a checkpoint on disk to a decoder on its device.

The decoder is made on the meta device; then each of its weights is read, joined, converted or quantised, and placed,
one at a time, so that the host never holds more than one of them. Missing, unexpected and misshapen tensors are
ModelErrors. Nothing but data is read: no pickle, no code of the checkpoint, and no switch for either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from whippet.errors import ModelError, UsageError
from whippet.kernels import fp8_tensor
from whippet.kernels.fp8_tensor import FP8Tensor, quantize_fp8
from whippet.kernels.nf4 import NF4Tensor, dequantize_nf4, join_rows, quantize_nf4
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.model.families import config_from_hf
from whippet.model.projection import Projection
from whippet.options import Base, Compute
from whippet.weights import bnb
from whippet.weights.files import read_json
from whippet.weights.hf import CheckpointReader
from whippet.weights.names import Entry, Part, table

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HUB_TEXTS = ["*.json", "*.jinja", "tokenizer.model"]
"""Configuration, tokenizer and the index of the weights."""
HUB_FILES = ["*.safetensors", *HUB_TEXTS]
HUB_IGNORED = ["*/*", "consolidated*"]
HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", re.ASCII)
"""Tensors that old checkpoints hold although the config determines them."""

Report = Callable[[int, int], None]
"""Called with bytes read and bytes in all."""


def resolve_model(path: str | Path, revision: str = "main", *, weights: bool = True) -> Path:
    """The folder of a model: ``path`` itself if it exists, else the hub's files of that id (safetensors and text only).

    ``weights=False`` fetches the text only; what was fetched before is in the folder all the same. A socket is opened
    only for a hub id that is no local path. Raises ModelError naming both readings.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise ModelError(f"{local}: a file; wanted the folder that holds config.json and the safetensors files")
    name = str(path)
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{name}: no such folder, and no hub id either (those look like org/name)")
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=HUB_FILES if weights else HUB_TEXTS,
            ignore_patterns=HUB_IGNORED,
        )
    except (OSError, ValueError, huggingface_hub.errors.EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name}: there is no such folder here, and as a hub id (revision {revision}) it could not be had: {reason}"
        ) from error
    return Path(found)


def read_config(folder: Path) -> tuple[ModelConfig, bool]:
    """What ``config.json`` says, and whether the checkpoint is already quantised to NF4."""
    where = folder / "config.json"
    raw = read_json(where)
    return config_from_hf(raw, where=str(where)), bnb.check_quantisation(raw, str(where))


def open_checkpoint(folder: Path, config: ModelConfig) -> CheckpointReader:
    """The weight files in ``folder``, opened, none of their tensors read.

    Every file is there and whole by its header, and holds the tensors that ``config`` wants, in their shapes, and no
    others; else ModelError. That takes as long for 70 billion weights as for 70: only where a tied checkpoint holds its
    output matrix a second time are the two compared, and of a quantised matrix a few bytes are read.
    """
    reader = CheckpointReader(folder)
    _check_names(reader, table(config), config)
    return reader


def load_decoder(
    path: str | Path,
    *,
    base: Base = "auto",
    compute: Compute = "auto",
    device: str | torch.device = "auto",
    trainable: bool = False,
    report: Report | None = None,
) -> Decoder:
    """Load the checkpoint in the folder ``path`` (of ``resolve_model``), in eval mode.

    ``base="auto"``: nf4 if the checkpoint is quantised, fp32 if ``trainable``, else the checkpoint's own 16 or 32 bit.
    ``nf4`` quantises the layers' projections, each part as bitsandbytes would, ``fp8`` by rows (those of a quantised
    checkpoint are dequantised first); what else there is, is held in the compute dtype. ``trainable`` makes every
    weight an fp32 parameter that requires a gradient (a quantised checkpoint is dequantised), otherwise all are frozen.
    Raises ModelError for what ``open_checkpoint`` refuses, and for a weight that is NaN or infinite.
    """
    folder, where = Path(path), choose_device(device)
    config, quantised = read_config(folder)
    entries = table(config)
    with open_checkpoint(folder, config) as reader:
        stored = reader.tensors[entries[0].parts[0].name].dtype
        chosen = choose_base(base, quantised=quantised, trainable=trainable, stored=stored)
        dtype = choose_compute(compute, chosen, where)
        held = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(chosen, dtype)
        decoder = Decoder(config, compute_dtype=dtype, device="meta", dtype=held)
        done, total = 0, reader.total_bytes
        for entry in entries:
            if chosen == "nf4" and entry.quantisable and _may_quantise(reader, entry, quantised):
                _place(decoder, entry, _nf4(reader, entry, where))
            elif chosen == "fp8" and entry.quantisable:
                _place(decoder, entry, _fp8(reader, entry, where))
            else:
                _place(decoder, entry, _dense(reader, entry, where, held))
            done += sum(reader.tensors[part.name].nbytes for part in entry.parts)
            if report is not None:
                report(done, total)
    return decoder.requires_grad_(trainable).eval()


def choose_device(device: str | torch.device) -> torch.device:
    """``auto`` is a GPU if there is one. Raises UsageError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"model.device is {device!r}; wanted auto, cpu, cuda or cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"model.device is {device!r}; wanted auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"model.device is {device!r}, and torch sees {torch.cuda.device_count()} GPUs here")
    return chosen


def choose_base(base: Base, *, quantised: bool, trainable: bool, stored: str) -> Base:
    """How weights will be held; ``stored`` is the checkpoint's dtype as safetensors spells it."""
    if base not in get_args(Base):
        raise UsageError(f"model.base is {base!r}; wanted one of {', '.join(get_args(Base))}")
    if trainable:
        if base not in ("auto", "fp32"):
            raise UsageError(f"model.base is {base!r}; training every weight needs fp32 master weights")
        return "fp32"
    if base != "auto":
        return base
    if quantised:
        return "nf4"
    return "fp32" if stored == "F32" else "bf16"


def choose_compute(compute: Compute, base: Base, device: torch.device) -> torch.dtype:
    """The dtype of activations: ``auto`` as ``ModelOptions.compute`` says."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if compute != "auto":
        if compute not in named:
            raise UsageError(f"model.compute is {compute!r}; wanted one of {', '.join(get_args(Compute))}")
        return named[compute]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if base == "bf16" else torch.float32


def _check_names(reader: CheckpointReader, entries: tuple[Entry, ...], config: ModelConfig) -> None:
    """Every tensor that the model needs is there, in a form that can be read, and no other is."""
    parts = {part.name: part for entry in entries for part in entry.parts}
    missing = [name for name in parts if name not in reader.tensors]
    if missing:
        raise ModelError(f"{reader.folder}: {len(missing)} tensors are missing, the first is {missing[0]!r}")
    known = set(parts)
    for name, part in parts.items():
        if bnb.is_quantised(reader, name):
            bnb.check_nf4(reader, name, part.shape)
            known |= bnb.companions(reader, name)
        else:
            _check_dense(reader, part)
    strange = [name for name in reader.tensors if name not in known and not DERIVED.fullmatch(name)]
    if config.tie_embeddings and "lm_head.weight" in strange:
        strange.remove("lm_head.weight")
        _check_tied(reader)
    if strange:
        raise ModelError(
            f"{reader.files[strange[0]]}: {len(strange)} unexpected tensors, the first is {strange[0]!r}; "
            "the config does not describe this checkpoint"
        )


def _check_dense(reader: CheckpointReader, part: Part) -> None:
    info, where = reader.tensors[part.name], reader.files[part.name]
    if info.dtype not in FLOATS:
        raise ModelError(
            f"{where}: {part.name} is {info.dtype}; whippet reads {', '.join(FLOATS)} and bitsandbytes nf4"
        )
    if info.shape != part.shape:
        raise ModelError(f"{where}: {part.name} has shape {list(info.shape)}, and the config wants {list(part.shape)}")


def _check_tied(reader: CheckpointReader) -> None:
    """A tied checkpoint may hold the output matrix once more, if it is the same."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if reader.tensors[head].dtype not in FLOATS or not torch.equal(reader.tensor(head), reader.tensor(embedding)):
        raise ModelError(
            f"{reader.folder}: config.json says tie_word_embeddings, yet lm_head.weight differs from the embedding; "
            "set it to false, or remove lm_head.weight"
        )


def _may_quantise(reader: CheckpointReader, entry: Entry, quantised: bool) -> bool:
    """All of a 16-bit checkpoint's matrices; of a quantised one only those that it holds in NF4 itself."""
    return not quantised or all(bnb.is_quantised(reader, part.name) for part in entry.parts)


def _nf4(reader: CheckpointReader, entry: Entry, device: torch.device) -> NF4Tensor:
    parts = []
    for part in entry.parts:
        if bnb.is_quantised(reader, part.name):
            parts.append(bnb.read_nf4(reader, part.name, part.shape, device))
        else:
            named = f"{reader.files[part.name]}: {part.name}"
            parts.append(quantize_nf4(reader.tensor(part.name, device), name=named))
    return parts[0] if len(parts) == 1 else join_rows(parts)


def _fp8(reader: CheckpointReader, entry: Entry, device: torch.device) -> FP8Tensor:
    parts = []
    for part in entry.parts:
        if bnb.is_quantised(reader, part.name):
            weight = dequantize_nf4(bnb.read_nf4(reader, part.name, part.shape, device), torch.float32)
        else:
            weight = reader.tensor(part.name, device)
        parts.append(quantize_fp8(weight, name=f"{reader.files[part.name]}: {part.name}"))
    return fp8_tensor.join_rows(parts)


def _dense(reader: CheckpointReader, entry: Entry, device: torch.device, dtype: torch.dtype) -> Tensor:
    rows = sum(part.shape[0] for part in entry.parts)
    fused = torch.empty((rows, *entry.parts[0].shape[1:]), dtype=dtype, device=device)
    for part, (_, target) in zip(entry.parts, entry.split(fused), strict=True):
        if bnb.is_quantised(reader, part.name):
            target.copy_(dequantize_nf4(bnb.read_nf4(reader, part.name, part.shape, device)))
        else:
            target.copy_(reader.tensor(part.name, device))
        # One pass without scratch. Of what is held, not of what was read: a weight may be too large for fp16.
        least, greatest = target.aminmax()
        if not bool(least.isfinite() & greatest.isfinite()):
            where = f"{reader.files[part.name]}: {part.name}"
            raise ModelError(f"{where} holds NaN, infinity or a number too large for {dtype}; wanted finite weights")
    return fused


def _place(decoder: Decoder, entry: Entry, value: Tensor | NF4Tensor | FP8Tensor) -> None:
    path, _, name = entry.ours.rpartition(".")
    module = decoder.get_submodule(path)
    if not isinstance(value, Tensor):
        assert isinstance(module, Projection)
        module.set_quantised(value)
    else:
        setattr(module, name, nn.Parameter(value, requires_grad=False))
