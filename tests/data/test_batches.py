"""Stores, packs, batches and steps: every example once, borders kept, exact resumption."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whippet.data.batches import IGNORED, Batch, Batches, DataPosition, Step, make_batch
from whippet.data.store import WINDOW, ExampleStore, StoreBuilder
from whippet.data.weigh import Weighed
from whippet.errors import DataError


def example(name: int, length: int) -> Weighed:
    """An example whose every id is its name."""
    weights = np.ones(length, np.float32)
    weights[0] = 0
    return Weighed(np.full(length, name, np.int32), weights)


def store(lengths: Sequence[int], sources: Sequence[int] = (), shares: tuple[float, ...] = (1.0,)) -> ExampleStore:
    builder = StoreBuilder()
    for name, length in enumerate(lengths):
        builder.add(example(name, length), sources[name] if sources else 0)
    return builder.build(shares)


def names(batches: Sequence[Batch]) -> list[int]:
    """The examples of batches, in order."""
    found = []
    for batch in batches:
        borders = batch.cu_seqlens.tolist()
        found += [int(batch.ids[start]) for start in borders[:-1]]
        for start, end in pairwise(borders):
            assert set(batch.ids[start:end].tolist()) == {int(batch.ids[start])}
    return found


def same(a: Step, b: Step) -> bool:
    fields = ("ids", "positions", "cu_seqlens", "labels", "weights")
    return (a.position, a.weight_sum, a.num_tokens, a.num_examples) == (
        b.position,
        b.weight_sum,
        b.num_tokens,
        b.num_examples,
    ) and all(
        torch.equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a.batches, b.batches, strict=True)
        for name in fields
    )


LENGTHS = [int(n) for n in np.random.default_rng(0).integers(2, 60, 300)]


def test_a_batch_in_full() -> None:
    first = Weighed(np.array([5, 6, 7], np.int32), np.array([0, 0, 1], np.uint8))
    second = Weighed(np.array([8, 9], np.int32), np.array([0, 0.5], np.float32))
    batch = make_batch([first, second])
    assert batch.ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.labels.tolist() == [IGNORED, 7, IGNORED, 9, IGNORED]
    assert batch.weights.tolist() == [0, 1, 0, 0.5, 0]
    assert (batch.max_length, batch.weight_sum, batch.num_tokens, batch.num_examples) == (3, 1.5, 5, 2)
    kinds = {name: getattr(batch, name).dtype for name in ("ids", "positions", "labels", "weights", "cu_seqlens")}
    assert kinds == {"ids": torch.int64, "positions": torch.int64, "labels": torch.int64, "weights": torch.float32,
                     "cu_seqlens": torch.int32}  # fmt: skip
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.labels, batch.labels) and moved.weight_sum == 1.5


@given(st.lists(st.integers(2, 30), min_size=2, max_size=12))
def test_halves_are_batches_of_their_own(lengths: list[int]) -> None:
    examples = [example(name, length) for name, length in enumerate(lengths)]
    halves = make_batch(examples).halves()
    assert halves is not None
    cut = halves[0].num_examples
    for half, part in zip(halves, (examples[:cut], examples[cut:]), strict=True):
        wanted = make_batch(part)
        for name in ("ids", "positions", "cu_seqlens", "labels", "weights"):
            assert torch.equal(getattr(half, name), getattr(wanted, name))
        assert (half.max_length, half.weight_sum) == (wanted.max_length, wanted.weight_sum)
    total = sum(lengths)
    assert abs(2 * halves[0].num_tokens - total) == min(
        abs(2 * sum(lengths[:border]) - total) for border in range(1, len(lengths))
    )


def test_one_document_has_no_halves() -> None:
    assert make_batch([example(1, 9)]).halves() is None


def test_a_store_keeps_examples_small() -> None:
    builder = StoreBuilder()
    kept = [example(1, 3), Weighed(np.array([1, 2], np.int32), np.array([0, 0.25], np.float32)), example(2, 4)]
    for one in kept[:1]:
        builder.add(one)
    assert builder.build().weights.dtype == np.uint8
    builder = StoreBuilder()
    for one in kept:
        builder.add(one)
    made = builder.build()
    assert made.weights.dtype == np.float32 and made.ids.dtype == np.int32 and len(made) == 3
    for place, one in enumerate(kept):
        assert made[place].ids.tolist() == one.ids.tolist() and made[place].weights.tolist() == one.weights.tolist()
    assert made.lengths.tolist() == [3, 2, 4] and made.num_tokens == 9 and made.num_trained == 6
    assert len(StoreBuilder().build()) == 0


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("tokens_per_step", "max_length"), [(200, 64), (64, 64), (40, 64), (10**9, 100)])
def test_an_epoch_shows_every_example_once(packing: bool, shuffle: bool, tokens_per_step: int, max_length: int) -> None:
    batches = Batches(
        store(LENGTHS), tokens_per_step=tokens_per_step, max_length=max_length, packing=packing, shuffle=shuffle
    )
    steps = list(batches.steps(epochs=1))
    seen = [name for step in steps for name in names(step.batches)]
    assert sorted(seen) == list(range(len(LENGTHS)))
    assert len(steps) == batches.num_steps(1) == batches.steps_per_epoch
    for step in steps:
        assert all(batch.num_tokens <= max_length for batch in step.batches)
        assert step.num_tokens == sum(batch.num_tokens for batch in step.batches)
        assert step.weight_sum == sum(batch.weight_sum for batch in step.batches)
        assert step.num_examples == len(names(step.batches))
        if not packing:
            assert all(batch.num_examples == 1 for batch in step.batches)
    if not shuffle and not packing:
        assert seen == sorted(seen)


def test_steps_come_as_near_to_their_tokens_as_packs_allow() -> None:
    batches = Batches(store(LENGTHS), tokens_per_step=500, max_length=100)
    steps = list(batches.steps(epochs=4))
    for step in steps[:-1]:
        assert abs(step.num_tokens - 500) <= 50 + 1
    assert sum(step.num_tokens for step in steps) == 4 * sum(LENGTHS)
    assert batches.num_steps(4) == len(steps)


def test_only_the_last_step_of_all_may_be_short() -> None:
    """An epoch that ends within a step is continued by the next one."""
    steps = list(Batches(store([50] * 7), tokens_per_step=100, max_length=50).steps(epochs=3))
    assert [step.num_tokens for step in steps] == [100] * 10 + [50]
    seen = Counter(name for step in steps for name in names(step.batches))
    assert set(seen.values()) == {3}


def test_part_of_an_epoch() -> None:
    steps = list(Batches(store([10] * 40), tokens_per_step=20, max_length=20).steps(epochs=1.5))
    seen = Counter(name for step in steps for name in names(step.batches))
    assert sorted(seen.values()) == [1] * 20 + [2] * 20


@settings(max_examples=12)
@given(st.integers(0, 5), st.booleans(), st.booleans(), st.integers(0, 40))
def test_a_position_goes_on_exactly_where_it_was(seed: int, packing: bool, shuffle: bool, done: int) -> None:
    def made() -> Batches:
        return Batches(store(LENGTHS), tokens_per_step=400, max_length=120, packing=packing, shuffle=shuffle, seed=seed)

    whole = list(islice(made().steps(), 45))
    position = whole[done].position
    again = DataPosition(**json.loads(json.dumps(position.as_dict())))
    rest = list(islice(made().steps(again), 45 - done - 1))
    assert len(rest) == 44 - done and all(same(a, b) for a, b in zip(rest, whole[done + 1 :], strict=True))


def test_resumption_over_several_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whippet.data.store.WINDOW", 37)
    whole = list(Batches(store(LENGTHS), tokens_per_step=150, max_length=60).steps(epochs=2))
    assert len({step.position.row for step in whole}) > 8
    for done in range(0, len(whole), 7):
        rest = list(Batches(store(LENGTHS), tokens_per_step=150, max_length=60).steps(whole[done].position, epochs=2))
        assert len(rest) == len(whole) - done - 1
        assert all(same(a, b) for a, b in zip(rest, whole[done + 1 :], strict=True))


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(store(LENGTHS), tokens_per_step=10**6, max_length=60, seed=seed)
        (step,) = batches.steps(DataPosition(epoch), epochs=epoch + 1)
        return names(step.batches)

    assert order(0, 0) == order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


def test_packs_are_filled_and_not_sorted_by_length() -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(4.5, 0.8, 3000).astype(int), 8, 1024).tolist()
    steps = list(Batches(store(lengths), tokens_per_step=1024, max_length=1024).steps(epochs=1))
    assert sum(lengths) / (1024 * sum(len(step.batches) for step in steps)) > 0.985
    longest = [max(batch.max_length for batch in step.batches) for step in steps]
    first, second = np.mean(longest[: len(longest) // 2]), np.mean(longest[len(longest) // 2 :])
    assert 0.8 < first / second < 1.25


@pytest.mark.parametrize(("share", "least", "most"), [(0.5, 0, 1), (1.0, 1, 1), (2.25, 2, 3), (3.0, 3, 3)])
def test_a_source_is_seen_by_its_share(share: float, least: int, most: int) -> None:
    lengths = [5] * 100 + [6] * 40
    made = store(lengths, [0] * 100 + [1] * 40, (share, 1.0))
    draws = []
    for epoch in (0, 1):
        order = made.order(epoch, seed=3, shuffle=True)
        seen = Counter(order.tolist())
        counts = [seen[name] for name in range(100)]
        assert sum(counts) == round(share * 100) and min(counts) == least and max(counts) == most
        assert all(seen[name] == 1 for name in range(100, 140))
        draws.append(counts)
    assert (draws[0] == draws[1]) == (share == int(share))


def test_data_without_examples_do_not_hang() -> None:
    empty = store([], shares=(1.0,))
    assert list(Batches(empty, tokens_per_step=8, max_length=8).steps(epochs=3)) == []
    with pytest.raises(DataError, match="no example to train on"):
        next(Batches(empty, tokens_per_step=8, max_length=8).steps())


def test_a_window_of_the_real_size_is_quick() -> None:
    import time

    lengths = np.random.default_rng(2).integers(20, 400, 3 * WINDOW).tolist()
    builder: Any = StoreBuilder()
    for name, length in enumerate(lengths):
        builder.add(example(name % 1000, length))
    batches = Batches(builder.build(), tokens_per_step=8192, max_length=2048)
    start = time.process_time()
    assert batches.num_steps(1.0) > 0
    assert time.process_time() - start < 2.0
