"""Real records through our own walk: read, rendered with the checkpoint's template, tokenised, packed, learnt from.

Comes in: a file of records, and the folder whose tokenizer and template they are for. Goes out: ``Records``, steps of
them, and ``Side`` with examples/s. Weights are random and every token is trained, as in the other rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from whippet.bench.results import Side
from whippet.bench.settings import Row
from whippet.bench.steps import make_learner, time_steps, workload
from whippet.chat.render import make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data.batches import Batches, DataPosition, Step, make_batch
from whippet.data.prepare import prepare
from whippet.data.store import ExampleStore
from whippet.errors import DataError
from whippet.options import DataOptions, Source
from whippet.train.memory import peak_bytes

MAX_LENGTH = 2048
SEED = 0


@dataclass(frozen=True)
class Records:
    """Examples as tokens."""

    store: ExampleStore
    tokenizer: Tokenizer

    @property
    def mean_tokens(self) -> float:
        """Of an example."""
        return self.store.num_tokens / len(self.store)

    def write_texts(self, path: Path) -> None:
        """The same examples as text, one a line (``{"text": …}``): what others are given to tokenise for themselves."""
        with path.open("w", encoding="utf-8") as file:
            for index in range(len(self.store)):
                text = self.tokenizer.decode(self.store[index].ids.tolist())
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def read_records(path: Path, checkpoint: Path) -> Records:
    """Every usable record of ``path``. DataError if there is none."""
    tokenizer = Tokenizer.load(checkpoint)
    renderer = make_renderer(tokenizer, None)
    data = DataOptions(sources=(Source(str(path)),), train_on="all", max_length=MAX_LENGTH, skip_bad=True)
    prepared = prepare(data, renderer, max_length=MAX_LENGTH, seed=SEED)
    assert isinstance(prepared.train, ExampleStore)
    return Records(prepared.train, tokenizer)


def steps_of(records: Records, row: Row) -> Iterator[Step]:
    """Steps without end: of ``row.examples`` each, in one packed stream; or of as many as ``row.setting.tokens``
    hold."""
    store = records.store
    if not row.examples:
        yield from Batches(store, tokens_per_step=row.setting.tokens, max_length=MAX_LENGTH, seed=SEED).steps()
        return
    if len(store) < row.examples:
        raise DataError(f"{len(store)} records are too few for a step of {row.examples}")
    for epoch in count():
        order = store.order(epoch, SEED, shuffle=True)
        for start in range(0, len(order) - row.examples + 1, row.examples):
            batch = make_batch([store[int(index)] for index in order[start : start + row.examples]])
            yield Step((batch,), batch.weight_sum, batch.num_tokens, row.examples, DataPosition())


def measure_records(row: Row, records: Records, device: torch.device, *, steps: int) -> Side:
    """Examples/s over ``steps`` steps after the row's warm-up: of all examples by all of the time."""
    given = list(islice(steps_of(records, row), row.warmup + steps))
    most, longest = max(step.num_tokens for step in given), int(records.store.lengths.max())
    work = workload(row.setting, device, longest=longest, tokens=max(most, longest))
    learner, _ = make_learner(row.setting, device, work=work)
    times, peak = time_steps(learner, given, len(given))
    timed = times[row.warmup :]
    seconds = sum(one.seconds for one in timed)
    return Side(
        sum(one.examples for one in timed) / seconds,
        peak.allocated,
        details={
            "records": len(records.store),
            "mean_tokens": records.mean_tokens,
            "tokens_per_s": sum(one.tokens for one in timed) / seconds,
            "step_s": float(np.median([one.seconds for one in timed])),
            "examples_per_step": sum(one.examples for one in timed) / len(timed),
            "steps": len(timed),
            "warmup": row.warmup,
            "first_step_s": times[0].seconds,
            "limits": learner.limits.as_dict(),
            "planned": peak_bytes(work, learner.limits),
            "reserved": peak.reserved,
            "loss": times[-1].loss,
        },
    )
