"""Checkpoints of a run: written aside, synced, sealed with a manifest of checksums, renamed; then read back as exactly.

A checkpoint is a folder ``step-000123`` with ``weights.safetensors`` (what is trained), ``optimizer.safetensors``,
``state.json`` (place in the data and all else that a step depends on) and ``manifest.json``, which is written last.
Comes in: a ``Checkpoint``. Goes out: the folder; or from a run's folder the newest one that is whole. Nothing that is
not finite is ever written, and no old checkpoint goes before a newer one is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from whippet.errors import ModelError, WhippetError
from whippet.report.figures import size
from whippet.weights.files import read_json, sync_folder, write_json
from whippet.weights.header import read_header
from whippet.weights.hf import save_tensors

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
FILES = (WEIGHTS, OPTIMIZER, STATE)
NAME = re.compile(r"step-(\d{6,12})", re.ASCII)
ASIDE = ".tmp-"
"""Folders that begin so are halves: of a save that was cut short, or of a removal."""
SIDE_BYTES = 64 * 1024
"""What the JSON files of a checkpoint take at most, headers of the safetensors files included for small models."""


@dataclass(frozen=True)
class Checkpoint:
    """All that the next step depends on. ``state`` is plain JSON values. Tensors that were loaded are views of mapped
    files: copy them into place and let them go."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


class CorruptCheckpoint(WhippetError):
    """A checkpoint whose files are not what its manifest says."""


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write ``checkpoint`` below ``folder`` (a run's ``checkpoints/``), then remove all but the newest ``keep``.

    Raises WhippetError, with everything that was there still there, if a tensor is not finite or the disk fails.
    """
    _check_finite(folder, checkpoint)
    final = folder / f"step-{checkpoint.step:06d}"
    aside = folder / f"{ASIDE}{final.name}"
    try:
        folder.mkdir(exist_ok=True)
        clear_aside(folder)
        aside.mkdir()
        save_tensors(aside / WEIGHTS, dict(checkpoint.weights))
        save_tensors(aside / OPTIMIZER, dict(checkpoint.optimizer))
        write_json(aside / STATE, dict(checkpoint.state))
        _seal(aside, checkpoint.step)
        if final.exists():  # one of this step that could not be read
            _remove(final)
        aside.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _disk_failed(folder, checkpoint, error) from error
    _rotate(folder, checkpoint.step, keep)
    return final


def newest(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint below ``folder`` that is whole, None if there is none. ``tell`` hears of damaged ones.

    Raises CorruptCheckpoint if there are checkpoints and not one of them is whole.
    """
    found = steps(folder)
    for older, step in reversed([*enumerate(found)]):
        try:
            return load(folder / f"step-{step:06d}")
        except (CorruptCheckpoint, ModelError) as error:
            if not older:
                told = f"none of the {len(found)} checkpoints can be read" if len(found) > 1 else "there is no other"
                raise CorruptCheckpoint(f"{error}; {told}. Choose another --out") from error
            tell(f"{error}; falling back to the checkpoint before it")
    return None


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints below ``folder`` that were completed, rising."""
    if not folder.is_dir():
        return []
    matches = (NAME.fullmatch(path.name) for path in folder.iterdir() if (path / MANIFEST).is_file())
    return sorted(int(match.group(1)) for match in matches if match)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint. Raises CorruptCheckpoint or ModelError naming the file that is not as it was written."""
    step = int(path.name.removeprefix("step-"))
    check(path, step)
    return Checkpoint(step, _tensors(path / WEIGHTS), _tensors(path / OPTIMIZER), read_json(path / STATE))


def check(path: Path, step: int) -> None:
    """Compare every file with the manifest."""
    manifest = read_json(path / MANIFEST)
    if (path / MANIFEST).read_bytes() != _manifest_bytes(manifest) or manifest.get("step") != step:
        raise CorruptCheckpoint(f"{path / MANIFEST}: is not what was written")
    listed = manifest.get("files")
    if not isinstance(listed, dict) or set(listed) != set(FILES):
        raise CorruptCheckpoint(f"{path / MANIFEST}: must list {', '.join(FILES)}")
    for name, seal in listed.items():
        if not (path / name).is_file():
            raise CorruptCheckpoint(f"{path / name}: missing")
        if _seal_of(path / name) != seal:
            raise CorruptCheckpoint(f"{path / name}: its checksum is not the one that was written")


def clear_aside(folder: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for path in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(path)


def nbytes(checkpoint_tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the numbers in ``checkpoint_tensors``."""
    return sum(tensor.nbytes for tensor in checkpoint_tensors.values())


def _check_finite(folder: Path, checkpoint: Checkpoint) -> None:
    for kind, tensors in (("weight", checkpoint.weights), ("optimiser state", checkpoint.optimizer)):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise WhippetError(
                    f"step {checkpoint.step}: the {kind} {name} holds NaN or infinity, so no checkpoint was written; "
                    f"{_what_is_left(folder)}. Lower train.learning_rate, or set train.clip"
                )


def _seal(folder: Path, step: int) -> None:
    """Write the manifest; whoever finds it finds everything else whole."""
    manifest = {"step": step, "files": {name: _seal_of(folder / name) for name in FILES}}
    write_json(folder / MANIFEST, manifest)


def _seal_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """The one spelling that a manifest has, so that a changed byte anywhere in it shows."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _tensors(path: Path) -> dict[str, Tensor]:
    read_header(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _rotate(folder: Path, newest_step: int, keep: int) -> None:
    """Keep the ``keep`` newest up to ``newest_step``. Later ones are of a run that was damaged and begun again."""
    known = steps(folder)
    good = [step for step in known if step <= newest_step]
    for step in known:
        if step not in good[-keep:]:
            _remove(folder / f"step-{step:06d}")


def _remove(path: Path) -> None:
    """Rename first: a kill in the middle must not leave a folder that looks like a checkpoint."""
    gone = path.with_name(f"{ASIDE}old-{path.name}")
    path.rename(gone)
    shutil.rmtree(gone)


def _disk_failed(folder: Path, checkpoint: Checkpoint, error: Exception) -> WhippetError:
    needed = nbytes(checkpoint.weights) + nbytes(checkpoint.optimizer) + SIDE_BYTES
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    return WhippetError(
        f"{folder}: the checkpoint of step {checkpoint.step} could not be written: {error}. It needs {size(needed)} "
        f"({needed:,} bytes) and {size(free)} ({free:,} bytes) are free; "
        f"{_what_is_left(folder)}. Make room and run the same command"
    )


def _what_is_left(folder: Path) -> str:
    left = steps(folder)
    return f"the checkpoint of step {left[-1]} is intact" if left else "there is no earlier checkpoint"
