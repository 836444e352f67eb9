"""A GGUF file's header, checked before a byte of it is used, and its tensors.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all little-endian: magic and version; how many
tensors and how many pairs of metadata; the pairs; of each tensor its name, shape (the fastest axis first), type and
place; the data, aligned. Every count is held against the bytes that are left before anything of that size is made, and
every place against the file's end. In: a path. Out: ``GGUFFile``. Raises ModelError that names the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.weights.gguf_blocks import NUMBERS, Kind, dequantise
from whippet.weights.reading import Files

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Of metadata, by the format's number for each type."""
TEXT, ARRAY = 8, 9
MAX_PAIRS = 2**14
MAX_TENSORS = 2**17
MAX_TEXTS = 10**6
"""In all arrays of a file: a vocabulary and its merges take 800,000 at most by now."""
MAX_TEXT_BYTES = 2**24
MAX_EXTENT = 2**48
DEFAULT_ALIGNMENT = 32
SMALLEST_PAIR = 13
"""Bytes: the length of an empty key, a type and one byte."""
SMALLEST_TENSOR = 32


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file."""

    kind: Kind
    shape: tuple[int, ...]
    """As torch has it, the fastest axis last."""
    nbytes: int
    begin: int = field(compare=False)
    """Where its bytes begin in the file."""


class GGUFFile:
    """The metadata and the tensors of one file. Used as a context manager it is closed at the end.

    ``metadata``: numbers, flags and texts as Python has them; arrays of texts as lists, of others as numpy arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = Files()
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                self.metadata, self.tensors = _Header(file, size, path).read()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def raw(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """The bytes of a tensor, uint8 ``[rows, bytes of a row]``; one axis counts as one row."""
        info = self.tensors[name]
        try:
            flat = self._opened.read(self.path, info.begin, info.nbytes, torch.device(device))
        except OSError as error:
            raise ModelError(f"{self.path}: tensor {name!r} cannot be read: {error}") from error
        return flat.view(-1, info.kind.row_bytes(info.shape[-1]))

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A tensor, dequantised to fp32."""
        info = self.tensors[name]
        return dequantise(self.raw(name, device), info.kind).view(info.shape)

    def value(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """The metadata under ``key``. ModelError if it is absent and there is no default, or of another type."""
        value = self.metadata.get(key, default)
        if value is ...:
            raise ModelError(f"{self.path}: the key {key} is missing")
        if value is not default and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise ModelError(f"{self.path}: {key} is {str(value)[:60]!r}, of the wrong type")
        return value


class _Header:
    """A cursor over the file's start that never goes past its end."""

    def __init__(self, file: BufferedReader, size: int, path: Path) -> None:
        self.file, self.size, self.path = file, size, path
        self.place = 0
        self.texts = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        if self.take(4) != MAGIC:
            raise ModelError(f"{self.path}: no GGUF file; those begin with 'GGUF'")
        version = self.scalar("<I")
        if version not in VERSIONS:
            raise ModelError(f"{self.path}: GGUF version {version}; known: {VERSIONS[0]} and {VERSIONS[1]}")
        num_tensors = self.count("tensors", self.scalar("<Q"), SMALLEST_TENSOR, MAX_TENSORS)
        num_pairs = self.count("pairs of metadata", self.scalar("<Q"), SMALLEST_PAIR, MAX_PAIRS)
        metadata: dict[str, Any] = {}
        for _ in range(num_pairs):
            key = self.text()
            if not key or key in metadata:
                raise ModelError(f"{self.path}: the key {key!r:.60} {'comes twice' if key else 'is empty'}")
            metadata[key] = self.value(self.scalar("<I"))
        infos = self.infos(num_tensors)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 2**16 or alignment & (alignment - 1):
            raise ModelError(f"{self.path}: general.alignment is {str(alignment)[:60]}, and must be a power of two")
        return metadata, self.placed(infos, alignment)

    def infos(self, number: int) -> dict[str, tuple[Kind, tuple[int, ...], int]]:
        found: dict[str, tuple[Kind, tuple[int, ...], int]] = {}
        for _ in range(number):
            name = self.text()
            if not name or name in found:
                raise ModelError(f"{self.path}: the tensor {name!r:.60} {'comes twice' if name else 'has no name'}")
            axes = self.scalar("<I")
            if not 1 <= axes <= 4:
                raise ModelError(f"{self.path}: tensor {name!r:.60} has {axes} axes; wanted 1 to 4")
            shape = tuple(reversed([self.scalar("<Q") for _ in range(axes)]))
            if not all(0 < extent < MAX_EXTENT for extent in shape):
                raise ModelError(f"{self.path}: tensor {name!r:.60} has the impossible shape {list(shape)}")
            number_of_kind = self.scalar("<I")
            if number_of_kind not in NUMBERS:
                known = ", ".join(kind.name for kind in NUMBERS.values())
                raise ModelError(f"{self.path}: tensor {name!r:.60} is of type {number_of_kind}; known: {known}")
            found[name] = (NUMBERS[number_of_kind], shape, self.scalar("<Q"))
        return found

    def placed(self, infos: dict[str, tuple[Kind, tuple[int, ...], int]], alignment: int) -> dict[str, GGUFTensor]:
        start = -(-self.place // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        reached = start
        for name, (kind, shape, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
            where = f"{self.path}: tensor {name!r:.60}"
            try:
                nbytes = kind.row_bytes(shape[-1])
            except ModelError as error:
                raise ModelError(f"{where}: {error}") from error
            for extent in shape[:-1]:
                nbytes *= extent
            if offset % alignment:
                raise ModelError(f"{where} lies at byte {offset:,} of the data, no multiple of {alignment}")
            if start + offset < reached:
                raise ModelError(f"{where} overlaps the one before")
            reached = start + offset + nbytes
            if reached > self.size:
                raise ModelError(
                    f"{where} ends at byte {reached:,} and the file has {self.size:,}: cut off; download it again"
                )
            tensors[name] = GGUFTensor(kind, shape, nbytes, start + offset)
        return {name: tensors[name] for name in infos}

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ModelError(f"{self.path}: metadata of the unknown type {kind}")
        inner, number = self.scalar("<I"), self.scalar("<Q")
        if inner == TEXT:
            self.texts += number
            self.count("texts", number, 8, MAX_TEXTS)
            if self.texts > MAX_TEXTS:
                raise ModelError(f"{self.path}: it has more than {MAX_TEXTS:,} texts")
            return [self.text() for _ in range(number)]
        if inner not in SCALARS:
            raise ModelError(f"{self.path}: an array of the type {inner}; wanted numbers or texts")
        spelling = SCALARS[inner]
        size = struct.calcsize(spelling)
        self.count("numbers", number, size, self.size)
        return np.frombuffer(self.take(number * size), dtype=np.dtype(spelling))

    def count(self, what: str, number: int, each: int, most: int) -> int:
        """``number``, which may not be more than fits into what is left of the file."""
        if number > most or number * each > self.size - self.place:
            raise ModelError(f"{self.path}: claims {number:,} {what}, more than it can hold; download it again")
        return number

    def text(self) -> str:
        length = self.count("bytes of text", self.scalar("<Q"), 1, MAX_TEXT_BYTES)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path}: a text of its header is no UTF-8: {error}") from error

    def scalar(self, spelling: str) -> Any:
        return struct.unpack(spelling, self.take(struct.calcsize(spelling)))[0]

    def take(self, number: int) -> bytes:
        got = self.file.read(number) if number <= self.size - self.place else b""
        if len(got) != number:
            raise ModelError(f"{self.path}: its header ends at byte {self.size:,}: cut off; download it again")
        self.place += number
        return got
