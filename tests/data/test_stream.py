"""Streams: the same examples as in memory, each once an epoch, exact resumption, sources side by side."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from whippet.chat.render import Renderer
from whippet.data.batches import Batches, DataPosition, Step
from whippet.data.prepare import Prepared, prepare
from whippet.data.store import ExampleStore
from whippet.data.stream import ExampleStream
from whippet.errors import DataError
from whippet.options import DataOptions, Source


def write(path: Path, name: str, number: int) -> str:
    records = [{"prompt": f"{name}{n}", "completion": "x" * (n % 17 + 1)} for n in range(number)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def opened(renderer: Renderer, *sources: Source, **options: Any) -> Prepared:
    data = DataOptions(sources=sources, streaming=True, **options)
    return prepare(data, renderer, max_length=100, seed=0)


def prompts(steps: list[Step], renderer: Renderer) -> list[str]:
    found = []
    for step in steps:
        for batch in step.batches:
            borders = batch.cu_seqlens.tolist()
            for start, end in pairwise(borders):
                text = renderer.tokenizer.decode(batch.ids[start + 1 : end].tolist())
                found.append(text.partition("x")[0])
    return found


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whippet.data.stream.STREAM_WINDOW", 32)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_record_once_an_epoch(tmp_path: Path, renderer: Renderer, shuffle: bool) -> None:
    path = write(tmp_path / "a.jsonl", "p", 150)
    stream = opened(renderer, Source(path)).train
    assert isinstance(stream, ExampleStream)
    steps = list(Batches(stream, tokens_per_step=300, max_length=100, shuffle=shuffle).steps(epochs=2))
    assert Counter(prompts(steps, renderer)) == {f"p{n}": 2 for n in range(150)}
    memory = prepare(DataOptions(sources=(Source(path),)), renderer, max_length=100, seed=0).train
    assert isinstance(memory, ExampleStore)
    assert sum(step.num_tokens for step in steps) == 2 * memory.num_tokens


@pytest.mark.parametrize("shuffle", [True, False])
def test_resumption_is_exact(tmp_path: Path, renderer: Renderer, shuffle: bool) -> None:
    sources = [Source(write(tmp_path / f"{n}.jsonl", n, 70), weight=w) for n, w in (("a", 1.0), ("b", 0.5))]

    def batches() -> Batches:
        return Batches(opened(renderer, *sources).train, tokens_per_step=200, max_length=100, shuffle=shuffle, seed=3)

    whole = list(islice(batches().steps(), 30))
    assert whole[-1].position.epoch >= 1
    for done in (0, 3, 10, 20):
        position = DataPosition(**json.loads(json.dumps(whole[done].position.as_dict())))
        rest = list(islice(batches().steps(position), 30 - done - 1))
        for a, b in zip(rest, whole[done + 1 :], strict=True):
            assert a.position == b.position
            assert all(torch.equal(x.ids, y.ids) for x, y in zip(a.batches, b.batches, strict=True))


def test_sources_last_equally_long_and_follow_their_shares(tmp_path: Path, renderer: Renderer) -> None:
    sources = [
        Source(write(tmp_path / f"{name}.jsonl", name, number), weight=weight)
        for name, number, weight in (("a", 400, 0.5), ("b", 50, 2.0), ("c", 100, 1.0))
    ]
    steps = list(Batches(opened(renderer, *sources).train, tokens_per_step=200, max_length=100).steps(epochs=1))
    found = prompts(steps, renderer)
    counts = Counter(text[0] for text in found)
    assert counts["b"] == counts["c"] == 100 and 150 < counts["a"] < 250
    half = Counter(text[0] for text in found[: len(found) // 2])
    assert all(0.3 < half[name] / counts[name] < 0.7 for name in "abc")


def test_held_out_records_are_not_trained_on(tmp_path: Path, renderer: Renderer) -> None:
    prepared = opened(renderer, Source(write(tmp_path / "a.jsonl", "p", 200)), eval_fraction=0.2)
    held_out = {
        renderer.tokenizer.decode(prepared.eval[place].ids[1:].tolist()).partition("x")[0]
        for place in range(len(prepared.eval))
    }
    steps = list(Batches(prepared.train, tokens_per_step=300, max_length=100).steps(epochs=1))
    seen = prompts(steps, renderer)
    assert 20 < len(held_out) < 60 and not held_out & set(seen) and len(held_out) + len(seen) == 200


def test_only_the_beginning_is_looked_at(tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whippet.data.prepare.SAMPLE", 20)
    prepared = opened(renderer, Source(write(tmp_path / "a.jsonl", "p", 200)))
    assert prepared.report.rows == 20 and not prepared.report.complete
    assert "only the first 20 records of each source were looked at" in str(prepared.report)


def test_a_bad_record_beyond_the_beginning(tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whippet.data.prepare.SAMPLE", 20)
    path = write(tmp_path / "a.jsonl", "p", 60)
    with open(path, "a") as file:
        file.write('{"prompt": "q", "completion": ""}\n')
        file.write(json.dumps({"prompt": "q", "completion": "long" * 100}) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:61: completion: empty answer"):
        list(Batches(opened(renderer, Source(path)).train, tokens_per_step=300, max_length=100).steps(epochs=1))
    stream = opened(renderer, Source(path), skip_bad=True).train
    assert isinstance(stream, ExampleStream)
    steps = list(Batches(stream, tokens_per_step=300, max_length=100).steps(epochs=1))
    assert sum(step.num_examples for step in steps) == 60
    assert (stream.refused, stream.too_long) == (1, 1)


def test_part_of_an_epoch(tmp_path: Path, renderer: Renderer) -> None:
    stream = opened(renderer, Source(write(tmp_path / "a.jsonl", "p", 2000))).train
    steps = list(Batches(stream, tokens_per_step=300, max_length=100).steps(epochs=0.5))
    assert 700 < sum(step.num_examples for step in steps) < 1300
