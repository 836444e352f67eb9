"""Checkpoints in Hugging Face's layout: read tensor by tensor, and written shard by shard.

Reading: ``model.safetensors``, or shards with ``model.safetensors.index.json``. Every header is checked before the
first tensor is read (``header.py``), every name in the index goes through the one resolver of paths, and pickles are
refused.
Writing: shards of bounded size, each written aside and renamed, the index last.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from whippet.errors import ModelError, UsageError
from whippet.paths import inside
from whippet.weights.files import read_json, write_json, written_aside
from whippet.weights.header import PICKLE_SUFFIXES, TensorInfo, read_header, refuse_pickle, said_of_pickle
from whippet.weights.reading import Files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
"""What transformers writes too."""
TORCH = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64,
    "U64": torch.uint64, "F64": torch.float64,
}  # fmt: skip
"""The format's names of dtypes."""


class CheckpointReader:
    """The tensors of a folder. Used as a context manager its files are closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        self.files: dict[str, Path] = {}
        self._opened = Files()
        for path, listed in _shards(folder).items():
            self._take(path, listed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One tensor, in the file's dtype, in memory of its own."""
        path, info = self.files[name], self.tensors[name]
        try:
            flat = self._opened.read(path, info.begin, info.nbytes, torch.device(device))
        except OSError as error:
            raise ModelError(f"{path}: tensor {name!r} cannot be read: {error}") from error
        return flat.view(TORCH[info.dtype]).view(info.shape)

    def close(self) -> None:
        """Let go of the open files. Tensors that were read stay valid."""
        self._opened.close()

    def _take(self, path: Path, listed: set[str] | None) -> None:
        header = read_header(path)
        if listed is not None and (stray := sorted(listed ^ set(header))):
            held = "has no tensor" if stray[0] in listed else "holds a tensor that the index does not give it:"
            raise ModelError(f"{path}: {held} {stray[0]!r} ({len(stray)} such); the index and the shards disagree")
        for name, info in header.items():
            self.tensors[name] = info
            self.files[name] = path


def weights_are_here(folder: Path) -> bool:
    """Whether ``folder`` holds weight files, all that its index names. They may be no good. ModelError for an index
    that is none."""
    if (folder / SINGLE).is_file():
        return True
    return (folder / INDEX).is_file() and all((folder / file).is_file() for file in _listed(folder))


def write_checkpoint(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Path]:
    """Write ``tensors`` into ``folder`` as they come; returns the weight files.

    Holds one shard in memory. Each file is complete or absent; the index appears last. Raises UsageError if a tensor
    comes twice.
    """
    shards: list[tuple[Path, list[str]]] = []
    total = 0
    for shard in _gathered(tensors, max_shard_bytes):
        path = folder / f"model-{len(shards) + 1:05d}.safetensors.partial"
        save_tensors(path, shard)
        shards.append((path, list(shard)))
        total += sum(tensor.nbytes for tensor in shard.values())
        del shard  # or it would stay until the next one is whole
    count = len(shards)
    finals = [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    weight_map: dict[str, str] = {}
    for (path, names), final in zip(shards, finals, strict=True):
        path.replace(folder / final)
        for name in names:
            if name in weight_map:
                raise UsageError(f"the tensor {name!r} came twice")
            weight_map[name] = final
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return [folder / final for final in finals]


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file, whole or absent, with the metadata that transformers asks for and the umask's mode."""
    with written_aside(path) as aside:
        # safetensors puts a file of its own there, readable by the owner only; what mode a new file gets, one tells.
        aside.unlink(missing_ok=True)
        aside.touch()
        mode = aside.stat().st_mode
        save_file({name: _alone(tensor) for name, tensor in tensors.items()}, aside, {"format": "pt"})
        aside.chmod(stat.S_IMODE(mode))


def _alone(tensor: Tensor) -> Tensor:
    """The tensor on the CPU in memory of its own, as the format wants it."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _gathered(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterable[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        if name in shard:
            raise UsageError(f"the tensor {name!r} came twice")
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """Each weight file of the folder, with the tensors that the index places in it (None without an index)."""
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    if not (folder / INDEX).is_file():
        raise ModelError(_nothing_here(folder))
    found: dict[Path, set[str] | None] = {}
    for file, names in _listed(folder).items():
        path = folder / file
        if not path.is_file():
            raise ModelError(f"{path}: missing, though the index names it; download it again")
        found[path] = names
    return found


def _listed(folder: Path) -> dict[str, set[str]]:
    """The files that the index names, and the tensors that it places in each. ModelError for a name that is no
    safetensors file of this folder."""
    where = folder / INDEX
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{where}: weight_map must name the file of each tensor")
    listed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise ModelError(f"{where}: weight_map gives {name!r} the file {file!r}; wanted text")
        listed.setdefault(file, set()).add(name)
    for file in listed:
        try:
            path = inside(folder, file)
        except UsageError as error:
            raise ModelError(f"{where}: weight_map: {error}") from error
        if path.suffix != ".safetensors":
            refuse_pickle(path, b"")
            raise ModelError(f"{where}: weight_map names {file!r}, which is no safetensors file")
    return listed


def _nothing_here(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        return said_of_pickle(folder / pickles[0])
    return f"{folder}: neither {SINGLE} nor {INDEX} is there"
