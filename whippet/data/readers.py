"""One file of any known kind to rows, each with its place.

Comes in: a path ending in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .txt or .md, the text kinds also with .gz.
Goes out: ``Row`` for each record, ``BadRow`` for a line that is no record though the rest of the file can be read.
Everything but .json is read as it is used, so such files may be larger than memory.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from whippet.data.json_rows import json_document, json_lines
from whippet.data.rows import BadRow, Lines, Row
from whippet.errors import DataError, MissingExtra

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", *TEXT_SUFFIXES)
PART = 2**20
"""Bytes of a text file that are read as one document. Longer files are parted at blank lines."""


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
            stream = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            source = Lines(stream, raw, max(path.stat().st_size, 1), name)
            if suffix == ".json":
                yield from json_document(source)
            elif suffix in (".csv", ".tsv"):
                yield from _csv(source)
            elif suffix in TEXT_SUFFIXES:
                yield from _text(source)
            else:
                yield from json_lines(source)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def _csv(source: Lines) -> Iterator[Row | BadRow]:
    csv.field_size_limit(2**31 - 1)
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
                    reason = f"{len(cells)} cells, wanted {len(names)} ({', '.join(map(repr, names))})"
                    yield BadRow(source.name, line, number, reason, source.progress)
            line = source.number + 1
    except csv.Error as error:
        raise DataError(f"{source.name}:{line}: broken CSV: {error}") from error


def _text(source: Lines) -> Iterator[Row]:
    """The file as one document; a long one in parts of ``PART``, cut after a blank line or else after any line."""
    part: list[str] = []
    size = number = 0
    for text in source:
        size += len(text)
        if part and size > 2 * PART:
            number += 1
            yield _document(part, source, source.number - len(part), number)
            part, size = [], len(text)
        part.append(text)
        if size >= PART and not text.strip():
            number += 1
            yield _document(part, source, source.number - len(part) + 1, number)
            part, size = [], 0
    if "".join(part).strip():
        yield _document(part, source, source.number - len(part) + 1, number + 1)


def _document(part: list[str], source: Lines, line: int, number: int) -> Row:
    value = {"text": "".join(part).replace("\r\n", "\n")}
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
