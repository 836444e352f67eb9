"""What files are read to: rows, each with its place; and the lines of a file as text.

Comes in: a stream of bytes. Goes out: lines, counted, which must be UTF-8. A ``Row`` holds one record, a ``BadRow``
stands for a line that holds none though the rest of the file can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

from whippet.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One record. line: where it begins in its file, None where files have no lines; number: counted from 1.

    running_text: the record is (a part of) a text file, which may be split into windows.
    progress: how much of the file is read, 0 to 1.
    """

    file: str
    line: int | None
    number: int
    value: Any
    running_text: bool = False
    progress: float = 0.0

    @property
    def where(self) -> str:
        return place(self.file, self.line, self.number)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that holds no record, with the reason."""

    file: str
    line: int | None
    number: int
    reason: str
    progress: float = 0.0

    @property
    def where(self) -> str:
        return place(self.file, self.line, self.number)


def place(file: str, line: int | None, number: int) -> str:
    """How messages name a record: ``file:line``, or by its number where a file has no lines."""
    return f"{file}: record {number}" if line is None else f"{file}:{line}"


class Lines:
    """The lines of a stream as text, counted. DataError where they are not UTF-8."""

    def __init__(self, stream: BufferedIOBase, raw: BufferedIOBase, size: int, name: str) -> None:
        self.name = name
        self.number = 0
        self._stream, self._raw, self._size = stream, raw, size

    @property
    def progress(self) -> float:
        return min(self._raw.tell() / self._size, 1.0)

    def __iter__(self) -> Iterator[str]:
        for raw in self._stream:
            self.number += 1
            if self.number == 1:
                raw = _without_mark(raw, self.name)
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.name}:{self.number}: not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1} "
                    "of the line; convert the file to UTF-8"
                ) from error


def _without_mark(raw: bytes, name: str) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name}: is UTF-16; convert the file to UTF-8")
    return raw.removeprefix(b"\xef\xbb\xbf")
