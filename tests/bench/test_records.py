"""Real records through our own walk, in steps of so many examples or so many tokens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from whippet.bench.records import Records, measure_records, read_records, steps_of
from whippet.bench.settings import Row, Setting
from whippet.demo import ASSETS
from whippet.errors import DataError

TINY = ASSETS / "tiny"
SETTING = Setting("tiny", docs=1, length=256)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    rows = [{"instruction": f"Say {n}", "output": f"It is {n}." * (1 + n % 3)} for n in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(path, TINY)


def test_every_token_but_the_first_is_trained(records: Records) -> None:
    assert len(records.store) == 50
    assert records.store.num_trained == records.store.num_tokens - 50
    assert records.mean_tokens == records.store.num_tokens / 50


def test_so_many_examples_a_step(records: Records) -> None:
    """Each once an epoch, but for what is left over; without end."""
    row = Row("r", SETTING, "records", examples=8)
    given = list(itertools.islice(steps_of(records, row), 14))
    assert all(step.num_examples == 8 and len(step.batches) == 1 for step in given)
    assert all(step.batches[0].num_examples == 8 for step in given)
    seen = [tuple(step.batches[0].ids.tolist()) for step in given]
    assert len(set(seen)) == len(seen)


def test_so_many_tokens_a_step(records: Records) -> None:
    given = list(itertools.islice(steps_of(records, Row("r", SETTING, "records")), 3))
    assert all(abs(step.num_tokens - 256) < 60 for step in given)


def test_too_few_records(records: Records) -> None:
    with pytest.raises(DataError, match="50 records are too few for a step of 51"):
        next(steps_of(records, Row("r", SETTING, "records", examples=51)))


def test_texts_give_the_same_tokens(records: Records, tmp_path: Path) -> None:
    records.write_texts(tmp_path / "t.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert len(texts) == 50
    for index in (0, 17, 49):
        ids = records.tokenizer.encode(texts[index])
        assert ids == records.store[index].ids.tolist()


def test_figures(records: Records) -> None:
    side = measure_records(Row("r", SETTING, "records", examples=8, warmup=1), records, torch.device("cpu"), steps=3)
    assert side.value is not None and side.details["steps"] == 3 and side.details["examples_per_step"] == 8
    share = side.details["tokens_per_s"] / side.value
    assert 0.7 < share / records.mean_tokens < 1.4
