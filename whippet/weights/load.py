"""From a checkpoint on disk to a decoder on its device.

The decoder is made on the meta device; then each of its weights is read, joined, converted or quantised, and placed,
one at a time, so that the host never holds more than one of them. Missing, unexpected and misshapen tensors are
ModelErrors. Nothing but data is read: no pickle, no code of the checkpoint, and no switch for either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from whippet.chat.checkpoint_templates import FOLDER as TEMPLATES
from whippet.errors import ModelError, UsageError
from whippet.kernels.fp8_tensor import FP8Tensor
from whippet.kernels.int8 import THRESHOLD, Int8Tensor
from whippet.kernels.nf4 import NF4Tensor
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.model.families import config_from_hf
from whippet.model.projection import Projection
from whippet.options import Base, Compute
from whippet.weights import assemble, bnb
from whippet.weights.files import read_json
from whippet.weights.hf import CheckpointReader
from whippet.weights.meta import MetaReader, is_meta
from whippet.weights.names import Entry, Part, table


def folders_but(name: str) -> list[str]:
    """Patterns of ``fnmatch``, for which ``*`` is also ``/``, that match every path in a folder but those right in the
    folder ``name``: one for each place where another name may differ, and for each where it may end."""
    others = [f"{name[:place]}[!{letter}]*/*" for place, letter in enumerate(name)]
    shorter = [f"{name[:place]}/*" for place in range(len(name))]
    return [*others, *shorter, f"{name}[!/]*/*", f"{name}/*/*"]


FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HUB_LICENCE = ["README.md", "LICENSE*", "NOTICE*", "USE_POLICY.md"]
"""What a licence asks to be passed on, and the card that names it."""
HUB_TEXTS = ["*.json", "*.jinja", "tokenizer.model", "tokenizer.model.v*", *HUB_LICENCE]
"""Configuration, tokenizer and the index of the weights."""
HUB_FILES = ["*.safetensors", *HUB_TEXTS]
HUB_IGNORED = [*folders_but(TEMPLATES), f"{TEMPLATES}/*.json", f"{TEMPLATES}/*.safetensors", "consolidated*"]
"""Of folders within the repository only that of further chat templates is wanted."""
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
    """What ``config.json`` says, and whether the checkpoint is already quantised to NF4. (One in fp4 or 8 bit of
    bitsandbytes is not: it is read as the 16-bit weights that it stands for.)"""
    config, kind, _ = _read_config(folder)
    return config, kind == "nf4"


def held_in(folder: Path) -> bnb.Kind | None:
    """How bitsandbytes quantised the checkpoint, by its ``config.json``; None if it did not."""
    return _read_config(folder)[1]


def _read_config(folder: Path) -> tuple[ModelConfig, bnb.Kind | None, dict[str, Any]]:
    where = folder / "config.json"
    if not where.exists() and is_meta(folder):
        raise ModelError(f"{folder}: Meta's original layout; run: whippet convert {folder} --out DIR")
    raw = read_json(where)
    return config_from_hf(raw, where=str(where)), bnb.quantisation(raw, str(where)), raw


def open_checkpoint(folder: Path, config: ModelConfig) -> CheckpointReader:
    """The weight files in ``folder``, opened, none of their tensors read.

    Every file is there and whole by its header, and holds the tensors that ``config`` wants, in their shapes, and no
    others; else ModelError. That takes as long for 70 billion weights as for 70: only where a tied checkpoint holds its
    output matrix a second time are the two compared, and of a quantised matrix a few bytes are read.
    """
    return _checked(CheckpointReader(folder), config)


def open_meta(folder: Path) -> MetaReader:
    """The same of a folder in Meta's original layout; its ``config`` is the reader's."""
    reader = MetaReader(folder)
    _checked(reader, reader.config)
    return reader


def _checked(reader: CheckpointReader, config: ModelConfig) -> CheckpointReader:
    try:
        _check_names(reader, table(config), config)
    except BaseException:
        reader.close()
        raise
    return reader


def load_decoder(
    path: str | Path,
    *,
    base: Base = "auto",
    compute: Compute = "auto",
    device: str | torch.device = "auto",
    trainable: bool = False,
    report: Report | None = None,
    layout: Literal["hf", "meta"] = "hf",
) -> Decoder:
    """Load the checkpoint in the folder ``path`` (of ``resolve_model``), in eval mode. ``layout="meta"``: it is one of
    Meta's originals, whose files are archives of torch, which are opened only for who asks for it (``meta.py``).

    ``base="auto"``: nf4 or int8 if the checkpoint is quantised so (of fp4 the 16-bit weights that it stands for), fp32
    if ``trainable``, else the checkpoint's own 16 or 32 bit. ``nf4`` quantises the layers' projections, each part as
    bitsandbytes would, ``int8`` and ``fp8`` by rows (those of a checkpoint that is quantised otherwise are dequantised
    first); what else there is, is held in the compute dtype. ``trainable`` makes every weight an fp32 parameter that
    requires a gradient (a quantised checkpoint is dequantised), otherwise all are frozen.
    Raises ModelError for what ``open_checkpoint`` refuses, and for a weight that is NaN or infinite.
    """
    folder, where = Path(path), choose_device(device)
    reader: CheckpointReader
    if layout == "meta":
        reader = open_meta(folder)
        config, kind, threshold = reader.config, None, THRESHOLD
    else:
        config, kind, raw = _read_config(folder)
        threshold = bnb.int8_threshold(raw, str(folder / "config.json")) if kind == "int8" else THRESHOLD
        reader = open_checkpoint(folder, config)
    entries = table(config)
    with reader:
        stored = reader.tensors[entries[0].parts[0].name].dtype
        chosen = choose_base(base, kind=kind, trainable=trainable, stored=stored)
        dtype = choose_compute(compute, chosen, where)
        held = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(chosen, dtype)
        decoder = Decoder(config, compute_dtype=dtype, device="meta", dtype=held)
        done, total = 0, reader.total_bytes
        for entry in entries:
            if chosen == "nf4" and entry.quantisable and assemble.may_quantise(reader, entry, kind, chosen):
                _place(decoder, entry, assemble.nf4(reader, entry, where))
            elif chosen == "int8" and entry.quantisable and assemble.may_quantise(reader, entry, kind, chosen):
                _place(decoder, entry, assemble.int8(reader, entry, where, threshold))
            elif chosen == "fp8" and entry.quantisable:
                _place(decoder, entry, assemble.fp8(reader, entry, where))
            else:
                _place(decoder, entry, assemble.dense(reader, entry, where, held))
            done += sum(reader.tensors[part.name].nbytes for part in entry.parts)
            if report is not None:
                report(done, total)
    if compute == "fp8":
        for name, projection in decoder.projections():
            projection.multiply_in_fp8(name=f"{folder}: {name}")
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


def choose_base(base: Base, *, kind: bnb.Kind | None, trainable: bool, stored: str) -> Base:
    """How weights will be held; ``stored`` is the checkpoint's dtype as safetensors spells it, and ``kind`` how
    bitsandbytes has quantised it."""
    if base not in get_args(Base):
        raise UsageError(f"model.base is {base!r}; wanted one of {', '.join(get_args(Base))}")
    if trainable:
        if base not in ("auto", "fp32"):
            raise UsageError(f"model.base is {base!r}; training every weight needs fp32 master weights")
        return "fp32"
    if base != "auto":
        return base
    if kind == "nf4" or kind == "int8":
        return kind
    return "fp32" if stored == "F32" else "bf16"


def choose_compute(compute: Compute, base: Base, device: torch.device) -> torch.dtype:
    """The dtype of activations: ``auto`` as ``ModelOptions.compute`` says."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
    if compute != "auto":
        if compute == "fp8" and base not in ("nf4", "fp8"):
            raise UsageError(f'model.compute = "fp8" needs model.base = "nf4" or "fp8", met "{base}"')
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
        if bnb.kind_of(reader, name):
            bnb.check(reader, name, part.shape)
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
            f"{where}: {part.name} is {info.dtype}; whippet reads {', '.join(FLOATS)} and what bitsandbytes quantised"
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


def _place(decoder: Decoder, entry: Entry, value: Tensor | NF4Tensor | Int8Tensor | FP8Tensor) -> None:
    path, _, name = entry.ours.rpartition(".")
    module = decoder.get_submodule(path)
    if not isinstance(value, Tensor):
        assert isinstance(module, Projection)
        module.set_quantised(value)
    else:
        setattr(module, name, nn.Parameter(value, requires_grad=False))
