"""What was found in the data: counts, lengths, and every record that cannot be used.

Comes in: what ``prepare`` met, record by record. Goes out: ``DataReport``, as JSON or as text of 80 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np
import numpy.typing as npt

from whippet.data.examples import Problem
from whippet.data.rows import place
from whippet.data.turns import EMPTY
from whippet.errors import DataError

LISTED = 10_000
"""Most problems and long records that a report names; all are counted."""
SHOWN = 10
WIDTH = 80


@dataclass(frozen=True)
class LongRecord:
    """A record above ``max_length``. line: None in files without lines; record: its number in the file."""

    file: str
    line: int | None
    record: int
    tokens: int


@dataclass
class SourceReport:
    """One source. forms: how many files have which form; why: what told the form of the first. use: ``train`` or
    ``eval``. share: how often its records are seen in an epoch."""

    path: str
    use: str
    share: float
    forms: dict[str, int] = field(default_factory=dict)
    why: str = ""
    rows: int = 0
    kept: int = 0
    ignored: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """Counts are of records, but for tokens and the examples that records became.

    duplicates: records whose content was met before (they are kept). long_records: those above ``max_length``, which
    are left out. complete: False if only the beginning was looked at (streaming).
    """

    max_length: int
    sources: list[SourceReport] = field(default_factory=list)
    rows: int = 0
    kept: int = 0
    refused: int = 0
    empty_answers: int = 0
    too_long: int = 0
    duplicates: int = 0
    eval_in_train: int = 0
    train_examples: int = 0
    eval_examples: int = 0
    train_tokens: int = 0
    trained_tokens: int = 0
    eval_tokens: int = 0
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    """Histogram: from, to (both included), how many records."""
    longest: int = 0
    median: int = 0
    problems: list[Problem] = field(default_factory=list)
    long_records: list[LongRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def trained_share(self) -> float:
        """Trained tokens among the tokens to train on."""
        return self.trained_tokens / max(self.train_tokens, 1)

    def add_problem(self, problem: Problem) -> None:
        """Count a record that cannot be used."""
        self.refused += 1
        self.empty_answers += problem.reason == EMPTY
        if len(self.problems) < LISTED:
            self.problems.append(problem)

    def add_long(self, record: LongRecord) -> None:
        """Count a record that is too long."""
        self.too_long += 1
        if len(self.long_records) < LISTED:
            self.long_records.append(record)

    def set_lengths(self, lengths: npt.NDArray[np.int64]) -> None:
        """Fill in what is told of the lengths of all records, the long ones included."""
        if len(lengths):
            self.lengths = histogram(lengths)
            self.longest, self.median = int(lengths.max()), int(np.median(lengths))

    def check(self, *, skip_bad: bool) -> None:
        """DataError if records are bad and that was not allowed, or if none is left."""
        if self.refused and not skip_bad:
            raise DataError(self._complaint())
        if self.kept or self.eval_examples:
            return
        if self.too_long:
            least = min(self.long_records, key=lambda record: record.tokens)
            where = place(least.file, least.line, least.record)
            raise DataError(
                f"all {self.too_long} usable records are longer than max_length = {self.max_length} tokens; shortest: "
                f"{where} with {least.tokens}. Set data.max_length higher, if the model's context allows it"
            )
        if self.refused:
            raise DataError(f"no record can be used; {self._complaint()}")

    def _complaint(self) -> str:
        hint = "--set data.skip_bad=true goes on without"
        if self.refused == 1:
            return f"{self.problems[0]} (the only bad record of {self.rows}; {hint} it)"
        more = f"\n  and {self.refused - SHOWN} more" if self.refused > SHOWN else ""
        listed = "".join(f"\n  {problem}" for problem in self.problems[:SHOWN])
        return f"{self.refused} of {self.rows} records cannot be used ({hint} them):{listed}{more}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "trained_share": round(self.trained_share, 6),
            "lengths": [{"from": low, "to": high, "records": count} for low, high, count in self.lengths],
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, *, every: bool = False) -> str:
        """For people, at most 80 columns wide, with the first bad records or ``every`` one that is known."""
        listed = self._listed(LISTED if every else SHOWN)
        return "\n".join([*self._sources(), *self._counts(), *self._histogram(), *listed, *self._notes()])

    def _sources(self) -> list[str]:
        lines = []
        for source in self.sources:
            forms = ", ".join(
                form if count == sum(source.forms.values()) == 1 else f"{form} ({count} files)"
                for form, count in source.forms.items()
            )
            use = " for evaluation" if source.use == "eval" else ""
            share = f" x {source.share:g}" if source.share != 1 else ""
            tail = f"{share}: {forms or 'no record'}{use}"
            lines.append(_end_of(source.path, max(WIDTH - len(tail), 20)) + tail)
            lines += [_cut(f"  found by: {source.why}")] if source.why else []
            if source.ignored:
                shown = ", ".join(name.rpartition("/")[2] for name in source.ignored[:3])
                lines.append(
                    _cut(f"  not read: {len(source.ignored)} files ({shown}{', ...' * (len(source.ignored) > 3)})")
                )
        return lines

    def _counts(self) -> list[str]:
        looked = "records" if self.complete else "records looked at"
        rows = [
            (looked, f"{self.rows:,}", ""),
            ("kept", f"{self.kept:,}", f"{self.duplicates:,} of them duplicates" if self.duplicates else ""),
            ("refused", f"{self.refused:,}", f"{self.empty_answers:,} empty answers" if self.empty_answers else ""),
            ("too long", f"{self.too_long:,}", f"above {self.max_length:,} tokens, left out" if self.too_long else ""),
            ("training", f"{self.train_examples:,}", f"{self.train_tokens:,} tokens, {self.trained_share:.1%} trained"),
        ]
        if self.eval_examples:
            rows.append(("evaluation", f"{self.eval_examples:,}", f"{self.eval_tokens:,} tokens"))
        return ["", *(f"{name:<18}{count:>12}   {tail}".rstrip() for name, count, tail in rows)]

    def _histogram(self) -> list[str]:
        if not self.lengths:
            return []
        most = max(count for _, _, count in self.lengths)
        lines = ["", f"tokens a record: median {self.median:,}, longest {self.longest:,}"]
        for low, high, count in self.lengths:
            bar = "█" * round(40 * count / most) or "▏" * (count > 0)
            lines.append(f"{f'{low:,}–{high:,}':>17}  {bar:<40} {count:,}".rstrip())
        return lines

    def _listed(self, most: int) -> list[str]:
        lines = []
        if self.problems:
            lines += ["", "refused:", *grouped(self.problems[:most])]
            lines += [f"  and {self.refused - most:,} more"] if self.refused > most else []
        if self.long_records:
            lines += ["", "too long (tokens):", *_by_file(self.long_records[:most])]
            lines += [f"  and {self.too_long - most:,} more"] if self.too_long > most else []
        return lines

    def _notes(self) -> list[str]:
        return ["", *(_folded(note, "note: ") for note in self.notes)] if self.notes else []


def histogram(lengths: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Counts by doubling lengths: 1–16, 17–32, 33–64 and so on, from the first to the last that is not empty."""
    exponents = np.maximum(np.ceil(np.log2(np.maximum(lengths, 1))).astype(int), 4)
    counts = np.bincount(exponents)
    low = int(exponents.min())
    return [(2 ** (e - 1) + 1 if e > 4 else 1, 2**e, int(counts[e])) for e in range(low, len(counts))]


def grouped(problems: Sequence[Problem]) -> list[str]:
    """A line or two for each problem; those of one file that share field and reason stand together."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.file, problem.told), []).append(problem)
    lines = []
    for (file, told), members in groups.items():
        if len(members) == 1:
            lines.append(_folded(str(members[0])))
        else:
            unit = "records" if members[0].line is None else "lines"
            places = ", ".join(str(problem.line or problem.record) for problem in members)
            lines += [_folded(f"{told} ({len(members):,} records)"), _folded(f"{file}: {unit} {places}", "    ")]
    return lines


def _by_file(records: Sequence[LongRecord]) -> list[str]:
    """Lines and tokens of long records, a paragraph a file."""
    files: dict[str, list[str]] = {}
    for record in records:
        spot = f"record {record.record}" if record.line is None else f"line {record.line}"
        files.setdefault(record.file, []).append(f"{spot} ({record.tokens:,})")
    return [_folded(f"{file}: {', '.join(spots)}") for file, spots in files.items()]


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _end_of(path: str, width: int) -> str:
    return path if len(path) <= width else f"...{path[3 - width :]}"


def _folded(text: str, start: str = "  ") -> str:
    lines = wrap(
        text, WIDTH, initial_indent=start, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)
