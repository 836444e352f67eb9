"""Sources to examples for training and evaluation, with a report: arrows one to four.

Comes in: ``DataOptions`` and a ``Renderer``. Goes out: ``Prepared``. Bad records are an error, unless
``data.skip_bad``; in either case each is known by file, line, field and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from whippet.chat.render import Renderer
from whippet.data import crew
from whippet.data.examples import Made, Maker, Problem, is_held_out, rows_of
from whippet.data.report import DataReport, LongRecord, SourceReport
from whippet.data.rows import BadRow, Row
from whippet.data.sources import DataFile, Found, find
from whippet.data.store import ExampleStore, StoreBuilder
from whippet.data.stream import ExampleStream, Typed
from whippet.errors import DataError
from whippet.options import DataFormat, DataOptions, Source

SAMPLE = 1000
"""Records of a source that are looked at before training on a stream."""
STREAM_EVAL = 1000
"""Most examples that are held out of a stream for evaluation; the rest of its evaluation share is left out."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Prepared:
    """Examples to train on and to evaluate on (perhaps none), and what was found."""

    train: ExampleStore | ExampleStream
    eval: ExampleStore
    report: DataReport


def prepare(
    data: DataOptions, renderer: Renderer, *, max_length: int, seed: int, on_progress: Progress | None = None
) -> Prepared:
    """Read, render and weigh all records. ``on_progress`` is told the number of rows now and then.

    DataError if a source has no record, if a record is bad and ``data.skip_bad`` is off, or if none is left.
    """
    prepared = examine(data, renderer, max_length=max_length, seed=seed, on_progress=on_progress)
    prepared.report.check(skip_bad=data.skip_bad)
    if isinstance(prepared.train, ExampleStore) and not len(prepared.train):
        raise DataError(f"all {prepared.report.eval_examples} examples were held out for evaluation; none is left")
    return prepared


def examine(
    data: DataOptions, renderer: Renderer, *, max_length: int, seed: int, on_progress: Progress | None = None
) -> Prepared:
    """``prepare`` without complaint about bad records, for those who want to see them."""
    sides = Sides(data, Maker(renderer, data.train_on, max_length), seed, on_progress)
    streams = [sides.read(number, source) for number, source in enumerate(data.sources)]
    for source in data.eval_sources:
        sides.read(-1, source)
    report = sides.finish()
    shares = tuple(source.weight for source in data.sources)
    train: ExampleStore | ExampleStream
    if data.streaming:
        maker = sides.maker
        train = ExampleStream(tuple(streams), shares, maker, data.skip_bad, data.eval_fraction, seed)
    else:
        train = sides.train.build(shares)
    held_out = sides.held_out.build()
    report.train_tokens = sides.tokens
    report.trained_tokens = sides.trained
    report.eval_tokens = held_out.num_tokens
    return Prepared(train, held_out, report)


@dataclass
class Sides:
    """The two sides, training and evaluation, as they fill up."""

    data: DataOptions
    maker: Maker
    seed: int
    on_progress: Progress | None
    train: StoreBuilder = field(default_factory=StoreBuilder)
    held_out: StoreBuilder = field(default_factory=StoreBuilder)
    tokens: int = 0
    trained: int = 0

    def __post_init__(self) -> None:
        self.report = DataReport(self.maker.max_length, complete=not self.data.streaming)
        self._lengths: list[int] = []
        self._parted = 0
        self._train_digests: set[bytes] = set()
        self._eval_digests: set[bytes] = set()

    def read(self, number: int, source: Source) -> tuple[Typed, ...]:
        """Take in a source; ``number`` is -1 for one that is for evaluation. Returns its training files."""
        found = find(source)
        use = "train" if number >= 0 else "eval"
        about = SourceReport(source.path, use, source.weight, ignored=list(found.ignored))
        self.report.sources.append(about)
        typed = self._take(found, found.train, number, about)
        if not about.rows:
            raise DataError(f"{source.path}: holds no record")
        if found.held_out and number >= 0:
            self._take_held_out(found)
        return typed

    def _take_held_out(self, found: Found) -> None:
        names = ", ".join(file.name.rpartition("/")[2] for file in found.held_out[:3])
        if self.data.eval_sources:
            self.report.notes.append(f"{found.source.path}: {names} not read, because data.eval_sources are given")
            return
        about = SourceReport(f"{found.source.path} ({names})", "eval", 1.0)
        self.report.sources.append(about)
        self._take(found, found.held_out, -1, about)

    def _take(self, found: Found, files: tuple[DataFile, ...], number: int, about: SourceReport) -> tuple[Typed, ...]:
        typed: list[Typed] = []
        for file in files:
            forced: DataFormat = found.source.format or self.data.format
            detected, rows = rows_of(file, forced)
            if detected is None:
                self.report.notes.append(f"{file.name} holds no record")
                continue
            about.forms[detected.format] = about.forms.get(detected.format, 0) + 1
            about.why = about.why or detected.why
            typed.append((file, detected.format))
            make = partial(self.maker.make, form=detected.format)
            for row, made in crew.made(self._looked_at(rows, number, about), make):
                self._add(made, row, number, about)
        return tuple(typed)

    def _looked_at(self, rows: Iterator[Row | BadRow], number: int, about: SourceReport) -> Iterator[Row | BadRow]:
        """All rows; of a stream's training files only the first."""
        if not self.data.streaming or number < 0:
            return rows
        return islice(rows, max(SAMPLE - about.rows, 0))

    def _add(self, made: Made | Problem, row: Row | BadRow, number: int, about: SourceReport) -> None:
        report = self.report
        report.rows += 1
        about.rows += 1
        if self.on_progress is not None and report.rows % 100 == 0:
            self.on_progress(report.rows)
        if isinstance(made, Problem):
            report.add_problem(made)
            return
        self._lengths.append(made.length)
        if any(len(example) > self.maker.max_length for example in made.examples):
            report.add_long(LongRecord(row.file, row.line, row.number, made.length))
            return
        report.kept += 1
        about.kept += 1
        self._parted += len(made.examples) > 1
        held_out = number < 0 or is_held_out(made.digest, self.data.eval_fraction, self.seed)
        self._count_digest(made.digest, held_out)
        if held_out:
            self._hold_out(made)
            return
        for example in made.examples:
            report.train_examples += 1
            self.tokens += len(example)
            self.trained += example.num_trained
            if not self.data.streaming:
                self.train.add(example, number)

    def _hold_out(self, made: Made) -> None:
        for example in made.examples:
            if not self.data.streaming or self.report.eval_examples < STREAM_EVAL:
                self.report.eval_examples += 1
                self.held_out.add(example)

    def _count_digest(self, digest: bytes, held_out: bool) -> None:
        own = self._eval_digests if held_out else self._train_digests
        self.report.duplicates += digest in own
        own.add(digest)

    def finish(self) -> DataReport:
        """The report, with what is known only at the end."""
        report = self.report
        report.set_lengths(np.array(self._lengths, dtype=np.int64))
        report.eval_in_train = len(self._eval_digests & self._train_digests)
        if report.eval_in_train:
            report.notes.append(f"{report.eval_in_train} evaluation records occur among the training records too")
        if self._parted:
            report.notes.append(f"{self._parted} running texts lie in windows of at most {report.max_length:,} tokens")
        if self.data.eval_fraction and not report.eval_examples:
            report.notes.append(f"data.eval_fraction = {self.data.eval_fraction} holds out none of so few records")
        if self.data.streaming:
            report.notes.append(f"only the first {SAMPLE:,} records of each source were looked at (data.streaming)")
        return report
