"""A checkpoint in archives of torch written once more in safetensors: the one road for ``.bin`` and ``.pth``.

In: a folder with ``pytorch_model.bin`` (or its shards and their index), or in Meta's original layout. Out: a folder in
Hugging Face's layout, with tensors of the same dtype and bytes and the texts that lay beside them. One shard is in
memory at a time; the folder appears when it is whole and its headers fit its config.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from whippet.errors import ModelError, UsageError, WhippetError
from whippet.model.families import config_to_hf
from whippet.paths import inside, within
from whippet.weights.files import read_json, sync_folder, write_json
from whippet.weights.hf import MAX_SHARD_BYTES, write_checkpoint
from whippet.weights.load import open_checkpoint, open_meta, read_config
from whippet.weights.meta import MetaReader, is_meta, read_archive

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
TEXTS = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
"""What is copied as it is: configuration and tokenizer."""
LEFT = (INDEX, "params.json", "config.json")
MAX_TEXT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path
    layout: str
    """What was read: ``bin`` or ``meta``."""
    files: int
    tensors: int
    nbytes: int

    def __str__(self) -> str:
        read = "Meta's layout" if self.layout == "meta" else "archives of torch"
        return f"{self.tensors:,} tensors, {self.nbytes:,} bytes, from {read} into {self.files} safetensors"


def convert(source: str | Path, out: str | Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> Converted:
    """Write the checkpoint in ``source`` to the folder ``out``, which must be absent or empty.

    Raises UsageError for folders that are not what they must be, ModelError for archives that hold anything but
    tensors, or not those that the config wants.
    """
    folder, target = Path(source).expanduser(), Path(out).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; wanted one that holds {SINGLE}, its shards or consolidated.00.pth")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not an empty folder; choose another with --out")
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file() and not is_meta(folder):
        raise UsageError(f"{folder}: neither {SINGLE}, {INDEX} nor params.json with consolidated.00.pth is there")
    aside = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        written = (
            _from_meta(folder, aside, max_shard_bytes) if is_meta(folder) else _from_bin(folder, aside, max_shard_bytes)
        )
        sync_folder(aside)
        if target.exists():
            target.rmdir()
        aside.replace(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise WhippetError(f"{target}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    layout, files, counted = written
    return Converted(target, layout, files, counted.tensors, counted.nbytes)


@dataclass
class _Counted:
    """Counts what passes."""

    tensors: int = 0
    nbytes: int = 0

    def passing(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            self.tensors, self.nbytes = self.tensors + 1, self.nbytes + tensor.nbytes
            yield name, tensor


def _from_bin(folder: Path, aside: Path, max_shard_bytes: int) -> tuple[str, int, _Counted]:
    counted = _Counted()
    files = write_checkpoint(aside, counted.passing(_bin_tensors(folder)), max_shard_bytes=max_shard_bytes)
    _copy_texts(folder, aside)
    if (folder / "config.json").is_file():
        shutil.copyfile(within(folder, folder / "config.json", error=ModelError), aside / "config.json")
        config, _ = read_config(aside)
        open_checkpoint(aside, config).close()
    return "bin", len(files), counted


def _bin_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """What the archives hold, archive by archive, as copies."""
    if (folder / SINGLE).is_file():
        listed: dict[str, set[str]] = {SINGLE: set()}
    else:
        listed = _listed(folder)
    for file, names in listed.items():
        path = folder / file
        if not path.is_file():
            raise ModelError(f"{path}: missing, though the index names it; download it again")
        held = read_archive(path)
        if names and (stray := sorted(names ^ set(held))):
            fault = "has no tensor" if stray[0] in names else "holds a tensor that the index does not give it:"
            raise ModelError(f"{path}: {fault} {stray[0]!r} ({len(stray)} such); the index and the shards disagree")
        for name, tensor in held.items():
            yield name, tensor.clone(memory_format=torch.contiguous_format)


def _listed(folder: Path) -> dict[str, set[str]]:
    """The archives that the index names, with their tensors."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX}: weight_map must name the file of each tensor")
    listed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".bin"):
            raise ModelError(
                f"{folder / INDEX}: weight_map gives {name[:80]!r} the file {str(file)[:80]!r}; wanted .bin"
            )
        try:
            inside(folder, file)
        except UsageError as error:
            raise ModelError(f"{folder / INDEX}: weight_map: {error}") from error
        listed.setdefault(file, set()).add(name)
    return listed


def _from_meta(folder: Path, aside: Path, max_shard_bytes: int) -> tuple[str, int, _Counted]:
    counted = _Counted()
    with open_meta(folder) as reader:
        files = write_checkpoint(aside, counted.passing(_meta_tensors(reader)), max_shard_bytes=max_shard_bytes)
        dtype = str(reader.tensor("model.norm.weight").dtype).removeprefix("torch.")
        write_json(aside / "config.json", config_to_hf(reader.config, dtype=dtype))
        _copy_texts(folder, aside)
        open_checkpoint(aside, reader.config).close()
    return "meta", len(files), counted


def _meta_tensors(reader: MetaReader) -> Iterator[tuple[str, Tensor]]:
    for name in reader.tensors:
        yield name, reader.tensor(name).clone(memory_format=torch.contiguous_format)


def _copy_texts(folder: Path, aside: Path) -> None:
    for path in sorted({path for pattern in TEXTS for path in folder.glob(pattern)}):
        if path.name in LEFT or not path.is_file():
            continue
        within(folder, path, error=ModelError)
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ModelError(f"{path}: larger than {MAX_TEXT_BYTES:,} bytes, which no such file is")
        shutil.copyfile(path, aside / path.name)
