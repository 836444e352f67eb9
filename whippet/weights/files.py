"""JSON files of a checkpoint, read with limits, and files written so that they are whole or absent.

What is read was written by strangers: size and form are checked before use, and every failure is a ModelError that
names the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whippet.errors import ModelError
from whippet.paths import within

MAX_JSON_BYTES = 32 * 2**20
"""The index of a checkpoint of 100,000 tensors is about 10 MB; no honest file here is larger."""


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ModelError if it is absent, too large, a link that leads out of its
    folder, or anything else."""
    try:
        within(path.parent, path, error=ModelError)
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > limit:
        raise ModelError(f"{path}: larger than {limit:,} bytes, which no such file is")
    return parse_json(raw, str(path))


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """The object that ``raw`` spells; a key that comes twice in one object is refused."""
    try:
        value = json.loads(raw, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ModelError(f"{where}: nested too deeply to be an honest file") from error
    except ValueError as error:
        raise ModelError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where}: holds a JSON {type(value).__name__}; wanted an object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` indented, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; on success it is synced to disk and renamed, on failure removed."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the system lets a folder be synced."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return value
