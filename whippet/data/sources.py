"""Sources to files to rows: the first arrow of the walk.

Comes in: a ``Source``, whose path is a file, a folder or a hub dataset id. Goes out: its files, those for training
apart from those that its folder holds for evaluation, and their rows. A socket is opened for a hub id only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whippet.data.readers import SUFFIXES, kind, read_file
from whippet.data.rows import BadRow, Row
from whippet.errors import DataError
from whippet.options import Source
from whippet.paths import within

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HELD_OUT = frozenset({"valid", "validation", "val", "dev", "eval", "test"})
NOT_RECORDS = re.compile(
    r"(readme|license|licence|changelog|contributing|notice)\b.*"
    r"|(dataset_infos?|dataset_dict|state|config|metadata)\.json",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class DataFile:
    """A file to read, and how messages call it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Found:
    """The files of a source. held_out: those that a folder keeps for evaluation (valid, test). ignored: names."""

    source: Source
    train: tuple[DataFile, ...]
    held_out: tuple[DataFile, ...] = ()
    ignored: tuple[str, ...] = ()


def find(source: Source) -> Found:
    """The files of ``source``; DataError if there are none."""
    path = Path(source.path).expanduser()
    try:
        if path.is_dir():
            return _folder(source, path, source.path)
        if path.exists():
            return _file(source, path)
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read: {error.strerror or error}") from error
    if is_hub_id(source.path):
        return _folder(source, _download(source.path), source.path)
    raise DataError(f"{source.path}: no such file or folder")


def is_hub_id(text: str) -> bool:
    """Whether ``text``, which names nothing here, can be ``owner/dataset`` on the hub and not a mistyped path."""
    owner = text.partition("/")[0]
    return bool(HUB_ID.fullmatch(text)) and kind(Path(text)) is None and not Path(owner).exists()


def read_rows(source: Source) -> Iterator[Row | BadRow]:
    """Rows of the training files of ``source``, in order."""
    for file in find(source).train:
        yield from read_file(file.path, file.name)


def _file(source: Source, path: Path) -> Found:
    if kind(path) is None:
        raise DataError(
            f"{source.path}: unknown kind of file; known: {', '.join(SUFFIXES)}, the text kinds also with .gz"
        )
    return Found(source, (DataFile(path, source.path),))


def _folder(source: Source, folder: Path, name: str) -> Found:
    """All files below ``folder``, sorted. Hidden ones, and those that only describe a data set, are left out.

    DataError for a link out of it, to a file with records or to a folder; one to a folder inside is not followed, for
    what it leads to is found where it lies.
    """
    train: list[DataFile] = []
    held_out: list[DataFile] = []
    ignored: list[str] = []
    for relative in _below(folder):
        file = DataFile(folder / relative, f"{name.rstrip('/')}/{relative.as_posix()}")
        if kind(relative) is None or NOT_RECORDS.fullmatch(relative.name):
            ignored.append(file.name)
            continue
        if file.path.is_symlink():
            within(folder, file.path, error=DataError)
        (held_out if _is_held_out(relative) else train).append(file)
    if not train:
        train, held_out = held_out, []
    if not train:
        met = f"; it holds {', '.join(ignored[:5])}" if ignored else "; it is empty"
        raise DataError(f"{source.path}: no file with records ({', '.join(SUFFIXES)}) in this folder{met}")
    return Found(source, tuple(train), tuple(held_out), tuple(ignored))


def _below(folder: Path) -> list[Path]:
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if Path(base, name).is_symlink():
                within(folder, Path(base, name), error=DataError)
        found += [Path(base, name).relative_to(folder) for name in files if not name.startswith(".")]
    return sorted(found)


def _is_held_out(relative: Path) -> bool:
    """``valid.jsonl``, ``test-00000-of-00001.parquet``, ``validation/part.json``."""
    stems = (*relative.parts[:-1], relative.name)
    return any(re.split(r"[-_.]", stem.lower())[0] in HELD_OUT for stem in stems)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"*{suffix}{end}" for suffix in SUFFIXES for end in ("", ".gz")]
    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{hub_id}: no such file or folder, and not to be had from the hub: {reason}") from error
