"""One file of any known kind to rows, each with its place.

Comes in: a path ending in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .txt or .md, the text kinds also with .gz.
Goes out: ``Row`` for each record, ``BadRow`` for a line that is no record though the rest of the file can be read.
Everything but .json is read as it is used, so such files may be larger than memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from whippet.errors import DataError, MissingExtra

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", *TEXT_SUFFIXES)
PART = 2**20
"""Bytes of a text file that are read as one document. Longer files are parted at blank lines."""
NOT_CONTAINERS = frozenset({"messages", "conversations", "prompt", "completion", "chosen", "rejected", "history"})
BLANK = " \t\r\n"


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
        return _where(self.file, self.line, self.number)


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
        return _where(self.file, self.line, self.number)


def _where(file: str, line: int | None, number: int) -> str:
    return f"{file}: record {number}" if line is None else f"{file}:{line}"


def kind(path: Path) -> str | None:
    """The suffix that says how ``path`` is read, without .gz; None if it is none of ours."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES and not name.endswith(".parquet.gz") else None


def read_file(path: Path, name: str | None = None) -> Iterator[Row | BadRow]:
    """Rows of ``path``, called ``name`` in messages. DataError if the file cannot be read on."""
    name = name or str(path)
    suffix = kind(path)
    if suffix is None:
        raise DataError(f"{name}: unknown kind of file; known: {', '.join(SUFFIXES)}, the text kinds also with .gz")
    if suffix == ".parquet":
        yield from _parquet(path, name)
        return
    try:
        with path.open("rb") as raw:
            stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            source = Lines(stream, raw, max(path.stat().st_size, 1), name)
            if suffix == ".json":
                yield from _json(source)
            elif suffix in (".csv", ".tsv"):
                yield from _csv(source)
            elif suffix in TEXT_SUFFIXES:
                yield from _text(source)
            else:
                yield from _json_lines(source)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


class Lines:
    """The lines of a stream as text, counted. DataError where they are not UTF-8."""

    def __init__(self, stream: IO[bytes], raw: IO[bytes], size: int, name: str) -> None:
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


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _decoded(text: str) -> Any:
    """The JSON value of a line; ValueError tells column and reason."""
    try:
        value, end = DECODER.raw_decode(text, len(text) - len(text.lstrip(BLANK)))
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("broken JSON: nested too deeply") from error
    if text[end:].strip(BLANK):
        raise ValueError(f"broken JSON at column {end + 1}: more than one value in the line")
    return value


def _json_lines(source: Lines) -> Iterator[Row | BadRow]:
    number = 0
    for text in source:
        if not text.strip(BLANK):
            continue
        number += 1
        try:
            value = _decoded(text)
        except ValueError as error:
            hint = " (a file that is one JSON list is named .json)" if number == 1 and text.startswith("[") else ""
            yield BadRow(source.name, source.number, number, f"{error}{hint}", source.progress)
            continue
        yield Row(source.name, source.number, number, value, progress=source.progress)


def _json(source: Lines) -> Iterator[Row]:
    """A list of records, an object with one list of records, or (as many such files are) one object a line."""
    text = "".join(source)
    start = _skip(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _array(text, start, source.name)
        return
    value, end = _value(text, start, source.name)
    rest = _skip(text, end)
    line = text.count("\n", 0, start) + 1
    if rest == len(text):
        records = _contained(value)
        if records is None:
            yield Row(source.name, line, 1, value, progress=1.0)
        for number, record in enumerate(records or (), 1):
            yield Row(source.name, None, number, record, progress=number / len(records or ()))
        return
    number = 1
    while True:
        yield Row(source.name, line, number, value, progress=end / len(text))
        if rest == len(text):
            return
        line += text.count("\n", start, rest)
        start, number = rest, number + 1
        value, end = _value(text, start, source.name)
        rest = _skip(text, end)


def _contained(value: Any) -> list[Any] | None:
    """The list of records that ``value`` wraps, if it is no record itself."""
    if not isinstance(value, dict):
        return None
    lists = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return value[lists[0]] if len(lists) == 1 and lists[0] not in NOT_CONTAINERS else None


def _array(text: str, start: int, name: str) -> Iterator[Row]:
    place, line, counted, number = _skip(text, start + 1), 1, 0, 0
    if text[place : place + 1] == "]":
        _nothing_after(text, place, name)
        return
    while True:
        line += text.count("\n", counted, place)
        counted, number = place, number + 1
        value, end = _value(text, place, name)
        yield Row(name, line, number, value, progress=end / len(text))
        place = _skip(text, end)
        if text[place : place + 1] == "]":
            _nothing_after(text, place, name)
            return
        if text[place : place + 1] != ",":
            met = "the end of the file" if place >= len(text) else repr(text[place])
            raise DataError(f"{name}:{text.count(chr(10), 0, place) + 1}: broken JSON: met {met}, wanted ',' or ']'")
        place = _skip(text, place + 1)


def _nothing_after(text: str, bracket: int, name: str) -> None:
    rest = _skip(text, bracket + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        raise DataError(f"{name}:{line}: broken JSON: {text[rest : rest + 20]!r} after the end of the list")


def _value(text: str, place: int, name: str) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        line = text.count("\n", 0, place) + 1
        raise DataError(f"{name}:{line}: broken JSON: {error}") from error


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in BLANK:
        place += 1
    return place


def _csv(source: Lines) -> Iterator[Row | BadRow]:
    csv.field_size_limit(sys.maxsize)
    lines = iter(source)
    header = next(lines, "")
    if not header.strip():
        return
    delimiter = max(",;\t", key=header.count)
    names = [column.strip() for column in next(csv.reader([header], delimiter=delimiter))]
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"{source.name}:1: the header must name each column once, met {', '.join(names)!r:.100}")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number, line = 0, 2
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                number += 1
                if len(cells) == len(names):
                    yield Row(source.name, line, number, dict(zip(names, cells, strict=True)), progress=source.progress)
                else:
                    reason = f"{len(cells)} cells, wanted {len(names)} ({', '.join(names)})"
                    yield BadRow(source.name, line, number, reason, source.progress)
            line = source.number + 1
    except csv.Error as error:
        raise DataError(f"{source.name}:{line}: broken CSV: {error}") from error


def _text(source: Lines) -> Iterator[Row]:
    """The file as one document; a long one in parts of ``PART``, cut after a blank line or else after any line."""
    part, size, start, number = io.StringIO(), 0, 1, 0
    for text in source:
        if size and (size + len(text) > 2 * PART or (size >= PART and not text.strip())):
            number += 1
            yield _document(part, source, start, number)
            part, size, start = io.StringIO(), 0, source.number
        part.write(text)
        size += len(text)
    yield from [_document(part, source, start, number + 1)] if part.getvalue().strip() else []


def _document(part: io.StringIO, source: Lines, line: int, number: int) -> Row:
    value = {"text": part.getvalue().replace("\r\n", "\n")}
    return Row(source.name, line, number, value, running_text=True, progress=source.progress)


def _parquet(path: Path, name: str) -> Iterator[Row]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", f"{name}: reading Parquet files") from error
    try:
        with parquet.ParquetFile(path) as file:
            number, total = 0, max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(name, None, number, value, progress=number / total)
    except arrow.ArrowException as error:
        raise DataError(f"{name}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
