"""Examples read as training goes, for data larger than memory.

Comes in: files with their forms. Goes out: windows of examples, as ``ExampleStore`` gives them; records are shuffled
within a window, and sources are read side by side, so that all of them last until the end of the epoch.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from whippet.data.examples import Made, Maker, Problem, is_held_out
from whippet.data.readers import read_file
from whippet.data.rows import BadRow, Row
from whippet.data.sources import DataFile
from whippet.data.store import Window
from whippet.data.weigh import Weighed
from whippet.errors import DataError
from whippet.options import DataFormat

STREAM_WINDOW = 1024
"""Records that are shuffled and packed together: enough to fill packs, few enough that training begins soon."""

Typed = tuple[DataFile, DataFormat]


@dataclass
class ExampleStream:
    """The training records of files, again each epoch.

    sources: for each source its files with their forms; shares: how often each is seen. eval_fraction, seed: which
    records are left to evaluation. refused, too_long: records passed over so far, counted again each time.
    """

    sources: tuple[tuple[Typed, ...], ...]
    shares: tuple[float, ...]
    maker: Maker
    skip_bad: bool
    eval_fraction: float
    seed: int
    refused: int = field(default=0, init=False)
    too_long: int = field(default=0, init=False)

    def windows(self, epoch: int, *, seed: int, shuffle: bool, start: int = 0, share: float = 1.0) -> Iterator[Window]:
        """Windows of the first ``share`` of an epoch, from row ``start`` on. Rows before it are read, not rendered."""
        taken, begun = start, start
        examples: list[Weighed] = []
        for place, (progress, row, form) in enumerate(self._rows(epoch, seed, shuffle)):
            if place < start:
                continue
            if progress > share:
                break
            examples += self._made(row, form)
            taken = place + 1
            if taken - begun >= STREAM_WINDOW:
                yield _window(begun, taken, examples, seed, epoch, shuffle)
                begun, examples = taken, []
        if taken > begun:
            yield _window(begun, taken, examples, seed, epoch, shuffle)

    def _made(self, row: Row | BadRow, form: DataFormat) -> tuple[Weighed, ...]:
        made = self.maker.make(row, form)
        if isinstance(made, Problem):
            if not self.skip_bad:
                raise DataError(f"{made} (--set data.skip_bad=true goes on without such records)")
            self.refused += 1
            return ()
        return self._kept(made)

    def _kept(self, made: Made) -> tuple[Weighed, ...]:
        if is_held_out(made.digest, self.eval_fraction, self.seed):
            return ()
        short = tuple(example for example in made.examples if len(example) <= self.maker.max_length)
        self.too_long += len(short) < len(made.examples)
        return short

    def _rows(self, epoch: int, seed: int, shuffle: bool) -> Iterator[tuple[float, Row | BadRow, DataFormat]]:
        """Rows of all sources, always of the one that is least far; with how much of the epoch is done, 0 to 1."""
        readers = [self._source(number, epoch, seed, shuffle) for number in range(len(self.sources))]
        heap = [(0.0, number) for number in range(len(readers))]
        while heap:
            _, number = heap[0]
            following = next(readers[number], None)
            if following is None:
                heapq.heappop(heap)
                continue
            progress, row, form = following
            heapq.heapreplace(heap, (progress, number))
            yield progress, row, form

    def _source(
        self, number: int, epoch: int, seed: int, shuffle: bool
    ) -> Iterator[tuple[float, Row | BadRow, DataFormat]]:
        """Rows of one source, as often as its share says; of a part of a pass each row is drawn."""
        draw = random.Random(f"{seed} {epoch} {number}")
        share = self.shares[number]
        done = 0.0
        while done < share:
            part = min(share - done, 1.0)
            files = list(self.sources[number])
            if shuffle:
                draw.shuffle(files)
            for place, (file, form) in enumerate(files):
                for row in read_file(file.path, file.name):
                    if part == 1.0 or draw.random() < part:
                        yield (done + part * (place + row.progress) / len(files)) / share, row, form
            done += part


def _window(row: int, next_row: int, examples: list[Weighed], seed: int, epoch: int, shuffle: bool) -> Window:
    if shuffle:
        random.Random(f"{seed} {epoch} window {row}").shuffle(examples)
    return Window(row, next_row, [len(example) for example in examples], examples.__getitem__)
