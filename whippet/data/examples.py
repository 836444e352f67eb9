"""A row to examples with loss weights: the second, third and fourth arrow of the walk in one call.

Comes in: a ``Row``. Goes out: ``Made``, or ``Problem`` if the record is unusable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from whippet.chat.messages import Completion, Conversation, Document, Example
from whippet.chat.render import Renderer
from whippet.data.formats import Detected, detect, parse
from whippet.data.readers import read_file
from whippet.data.rows import BadRow, Row, place
from whippet.data.sources import DataFile
from whippet.data.turns import RecordError
from whippet.data.weigh import Weighed, weigh, windows
from whippet.errors import DataError
from whippet.options import DataFormat, TrainOn

LOOKED_AT = 50
"""Records of a file whose keys decide its form."""


@dataclass(frozen=True)
class Problem:
    """Why a record cannot be used. line: None in files without lines; record: its number in the file, from 1.
    field: '' for the record as a whole."""

    file: str
    line: int | None
    record: int
    field: str
    reason: str

    @property
    def told(self) -> str:
        """Field and reason."""
        return f"{self.field}: {self.reason}" if self.field else self.reason

    def __str__(self) -> str:
        return f"{place(self.file, self.line, self.record)}: {self.told}"


@dataclass(frozen=True)
class Made:
    """What became of a record: mostly one example; running text may give several windows.

    digest: 8 bytes that stand for the content. length: tokens of the record before it is parted.
    """

    where: str
    digest: bytes
    length: int
    examples: tuple[Weighed, ...]


@dataclass(frozen=True)
class Maker:
    """Makes examples of rows. max_length: longest window of running text; other examples are never cut."""

    renderer: Renderer
    train_on: TrainOn
    max_length: int

    def make(self, row: Row | BadRow, form: DataFormat) -> Made | Problem:
        """The examples of ``row``, whose record has the given form."""
        if isinstance(row, BadRow):
            return _problem(row, "", row.reason)
        try:
            example = parse(row.value, form)
            digest = content_digest(example)
            whole = weigh(self.renderer.render(example), example, self.train_on)
        except RecordError as error:
            return _problem(row, error.field, error.reason)
        except DataError as error:
            return _problem(row, "", str(error))
        if not whole.num_trained:
            return _problem(row, "", "no token of it would be trained")
        parts = windows(whole, self.max_length) if row.running_text else [whole]
        return Made(row.where, digest, len(whole), tuple(part for part in parts if part.num_trained))


def _problem(row: Row | BadRow, field: str, reason: str) -> Problem:
    return Problem(row.file, row.line, row.number, field, reason)


def content_digest(example: Example) -> bytes:
    """8 bytes that are equal for examples of equal content, whatever form they came in."""
    content: Any
    match example:
        case Conversation(messages, tools):
            content = [[message.as_template_value() for message in messages], tools]
        case Completion(prompt, completion):
            content = [prompt, completion]
        case Document(text):
            content = text
    plain = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
    try:
        return hashlib.blake2b(plain.encode("utf-8"), digest_size=8).digest()
    except UnicodeEncodeError as error:
        raise RecordError("holds half of a UTF-16 pair, which is no character") from error


def is_held_out(digest: bytes, fraction: float, seed: int) -> bool:
    """Whether content belongs to the evaluation share. Equal content always falls on the same side."""
    if not fraction:
        return False
    drawn = hashlib.blake2b(digest, digest_size=8, key=seed.to_bytes(16, "little")).digest()
    return int.from_bytes(drawn, "little") < fraction * 2**64


def rows_of(file: DataFile, form: DataFormat) -> tuple[Detected | None, Iterator[Row | BadRow]]:
    """The form of a file's records (None if it has none) and all its rows. ``form`` ``auto`` looks at the first."""
    rows = read_file(file.path, file.name)
    first = list(islice(rows, LOOKED_AT))
    values = [row.value for row in first if isinstance(row, Row)]
    if not first:
        return None, iter(())
    if form != "auto":
        return Detected(form, "named by data.format"), chain(first, rows)
    if any(isinstance(row, Row) and row.running_text for row in first):
        return Detected("text", "it is a text file"), chain(first, rows)
    if not values:
        raise DataError(f"{first[0].where}: {first[0].reason}" if isinstance(first[0], BadRow) else file.name)
    return detect(values, file.name), chain(first, rows)
