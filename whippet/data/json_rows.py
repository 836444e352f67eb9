"""JSON files to rows: one object a line, a list of objects, or an object that wraps such a list.

Comes in: the lines of a file. Goes out: rows with the line on which each record begins. A broken line of a file with
one object a line is a ``BadRow``; anywhere else broken JSON ends the file, with DataError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from whippet.data.rows import BadRow, Lines, Row
from whippet.errors import DataError

RECORD_KEYS = frozenset(
    {"messages", "conversations", "instruction", "output", "prompt", "completion", "text", "chosen", "rejected"}
)
BLANK = " \t\r\n"
BLANKS = re.compile(f"[{BLANK}]*")


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
    if end < len(text):
        raise ValueError(f"broken JSON at column {end + 1}: more than one value in the line")
    return value


def json_lines(source: Lines) -> Iterator[Row | BadRow]:
    number = 0
    for text in source:
        if not text.strip(BLANK):
            continue
        number += 1
        try:
            value = _decoded(text.rstrip(BLANK))
        except ValueError as error:
            hint = " (a file that is one JSON list is named .json)" if number == 1 and text.startswith("[") else ""
            yield BadRow(source.name, source.number, number, f"{error}{hint}", source.progress)
            continue
        yield Row(source.name, source.number, number, value, progress=source.progress)


def json_document(source: Lines) -> Iterator[Row]:
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
    if not isinstance(value, dict) or RECORD_KEYS & value.keys():
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return lists[0] if len(lists) == 1 else None


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
    blanks = BLANKS.match(text, place)
    assert blanks is not None
    return blanks.end()
