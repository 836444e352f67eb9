"""Rows to examples in several processes, for data of many records.

Comes in: rows and the function that makes examples of one. Goes out: each row with what became of it, in the order in
which they came. The first rows are made here; only a file that has more is worth the start of a crew. Its processes
are forked, as those of torch's DataLoader are, so a script needs no guard and nothing is sent but rows and examples;
where the system cannot fork, everything is made here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from itertools import chain, islice

from whippet.data.examples import Made, Problem
from whippet.data.rows import BadRow, Row

AnyRow = Row | BadRow
Make = Callable[[AnyRow], Made | Problem]

ALONE = 4000
"""Rows that are made in this process before others are asked to help: a few seconds of work."""
CHUNK = 128
"""Rows that a process makes at once."""


def made(rows: Iterator[AnyRow], make: Make) -> Iterator[tuple[AnyRow, Made | Problem]]:
    """Each of ``rows`` with ``make(row)``. An error in a process is raised here."""
    for row in islice(rows, ALONE):
        yield row, make(row)
    crew = _size()
    following = list(islice(rows, CHUNK))
    if crew == 1 or len(following) < CHUNK:
        for row in chain(following, rows):
            yield row, make(row)
        return
    with multiprocessing.get_context("fork").Pool(crew, _begin, (make,)) as pool:
        for chunk, results in pool.imap(_made_chunk, _chunks(following, rows)):
            yield from zip(chunk, results, strict=True)


def _size() -> int:
    """Processes that may run at once; 1 where none can be forked."""
    if "fork" not in multiprocessing.get_all_start_methods() or not hasattr(os, "sched_getaffinity"):
        return 1
    return len(os.sched_getaffinity(0))


def _chunks(first: list[AnyRow], rows: Iterator[AnyRow]) -> Iterator[list[AnyRow]]:
    yield first
    yield from iter(lambda: list(islice(rows, CHUNK)), [])


_make: Make


def _begin(make: Make) -> None:
    """Once in each process. Ctrl-C is the parent's to answer: it ends the others."""
    global _make
    _make = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _made_chunk(rows: list[AnyRow]) -> tuple[list[AnyRow], list[Made | Problem]]:
    return rows, [_make(row) for row in rows]
