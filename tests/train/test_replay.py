"""Padded and recorded micro-batches: the same losses and gradients as without, whatever comes in which order.

There is no CUDA graph on a CPU. ``Tape`` behaves as one: recording leaves no values behind, and a replay does the work
again with what its inputs hold then, writing into the tensors of the recording. The real ones are tested by
``test_replay_gpu.py``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers_train import example, make_learner, make_step, ragged_step, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whippet.data.batches import IGNORED, Batch, make_batch
from whippet.model.decoder import Decoder
from whippet.train import learner as learner_module
from whippet.train import replay
from whippet.train.learner import Learner
from whippet.train.limits import Limits
from whippet.train.objectives import sft
from whippet.train.replay import Replays
from whippet.train.shapes import GRAIN, Shape, padded, shape_of

PACKS = [[7, 12, 3], [20, 9], [5, 16, 4, 11], [7, 12, 3], [6, 14], [20, 9], [7, 12, 3], [5, 16, 4, 11]]


class Tape:
    """A recorder with the manners of CUDA graphs; it counts what was recorded and what was replayed."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.graphs = self.replays = self.forgotten = 0
        self.roomy = True

    def forget(self) -> None:
        self.forgotten += 1

    def has_room(self) -> bool:
        return self.roomy

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        self.graphs += 1
        before = [parameter.grad for parameter in self.parameters]
        held = [None if grad is None else grad.clone() for grad in before]
        result = work()
        result.loss_sum.fill_(float("nan"))
        for parameter, grad, values in zip(self.parameters, before, held, strict=True):
            if grad is not None and values is not None:
                assert parameter.grad is grad  # added in place
                grad.copy_(values)
            elif parameter.grad is not None and grad is None:
                parameter.grad.fill_(float("nan"))
        tape, writes = self, [grad is None for grad in before]

        class Graph:
            def replay(self) -> None:
                tape.replays += 1
                into = [parameter.grad for parameter in tape.parameters]
                for parameter, fresh in zip(tape.parameters, writes, strict=True):
                    if fresh:
                        parameter.grad = None
                again = work()
                for parameter, target in zip(tape.parameters, into, strict=True):
                    if target is not None and parameter.grad is not target:
                        assert parameter.grad is not None
                        target.copy_(parameter.grad)
                        parameter.grad = target
                result.loss_sum.copy_(again.loss_sum)
                result.correct.copy_(again.correct)

        return Graph(), result


def recorded(learner: Learner) -> Tape:
    parameters = list(learner.parameters.values())
    tape = Tape(parameters)
    learner.replays = Replays(learner.decoder, parameters, tape)
    return tape


def documents(lengths: list[int], seed: int) -> Batch:
    draw = random.Random(seed)
    return make_batch([example(length, draw, fractional=length % 2 == 0) for length in lengths])


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro", [10**6, 32])
def test_steps_are_those_without_recording(method: str, micro: int) -> None:
    """Eight steps, of one to four micro-batches, shapes in changing order: losses, norms and weights."""
    plain, other = (make_learner(method=method, limits=Limits(micro, 0, 16)) for _ in range(2))
    tape = recorded(other)
    for number in range(8):
        step = ragged_step(PACKS[number : number + 1 + number % 3], seed=number)
        told, wanted = other.learn(step, 1e-2, number), plain.learn(step, 1e-2, number)
        assert told.loss == pytest.approx(wanted.loss, rel=2e-6)
        assert told.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)
        assert (told.accuracy, told.num_trained) == (wanted.accuracy, wanted.num_trained)
        torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=3e-6)
    assert 1 < tape.graphs <= 8 and tape.replays > tape.graphs


def test_a_shape_is_recorded_when_it_comes_again_and_serves_other_numbers() -> None:
    learner = make_learner()
    tape = recorded(learner)
    for number in range(5):
        learner.learn(make_step([documents([7, 12, 3], number)]), 1e-2, number)
    assert tape.graphs == 1 and tape.replays == 4


def test_dropping_recorded_work_changes_nothing() -> None:
    plain, other = make_learner(), make_learner()
    tape = recorded(other)
    for number in range(6):
        step = ragged_step([PACKS[number % 2]], seed=number)
        plain.learn(step, 1e-2, number)
        if number in (3, 4):
            other.replays.clear()
            assert not other.replays.hold_memory
        other.learn(step, 1e-2, number)
    torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=3e-6)
    assert tape.graphs == 4


def test_running_out_of_memory_beside_recorded_work_makes_nothing_smaller() -> None:
    """The recorded work is dropped first; only if that does not help micro-batches are made smaller."""
    learner = make_learner(limits=Limits(1000, 0, 64))
    recorded(learner)
    same, other = make_step([documents([7, 12, 3], 1)]), make_step([documents([90, 40], 2)])
    for number in range(3):
        learner.learn(same, 1e-2, number)
    assert learner.replays.hold_memory
    tried: list[bool] = []

    def tight(decoder: Any, batch: Batch, chunk_rows: int) -> sft.Loss:
        tried.append(learner.replays.hold_memory)
        if tried[-1]:
            raise torch.OutOfMemoryError
        return sft.loss(decoder, batch, chunk_rows)

    learner.objective = tight
    assert learner.learn(other, 1e-2, 9).bad_place is None
    assert tried == [True, False] and learner.limits.micro_tokens == 1000
    learner.objective = lambda d, b, c: (_ for _ in ()).throw(torch.OutOfMemoryError) if len(b.ids) > 100 else None
    with pytest.raises(AttributeError):  # the smaller one is reached
        learner.learn(other, 1e-2, 10)
    assert learner.limits.micro_tokens < 130


def test_what_does_not_fit_even_alone_is_made_smaller() -> None:
    """A step whose first micro-batch is recorded each time that it is tried again, and whose second never fits."""
    learner = make_learner(limits=Limits(80, 0, 64))
    recorded(learner)
    small, large = documents([7, 12, 3], 1), documents([30, 40], 2)
    for number in range(3):
        learner.learn(make_step([small, small, small, small]), 1e-2, number)
    assert learner.replays.hold_memory
    tries = 0

    def tight(decoder: Any, batch: Batch, chunk_rows: int) -> sft.Loss:
        nonlocal tries
        tries += 1
        assert tries < 50, "it tries for ever"
        if int(batch.cu_seqlens[1]) == 30 and batch.weight_sum == large.weight_sum:
            raise torch.OutOfMemoryError
        return sft.loss(decoder, batch, chunk_rows)

    learner.objective = tight
    assert learner.learn(make_step([small, small, small, large]), 1e-2, 9).bad_place is None
    assert learner.limits.micro_tokens == 35


def test_the_host_is_not_filled_with_what_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner()
    config = learner.decoder.config
    monkeypatch.setattr(Decoder, "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(learner_module, "host_room", lambda: 1999 * config.hidden_size * 4)
    assert learner._smallest(1000).park == 1 and learner._smallest(10).park == config.num_layers


def test_without_memory_to_record_it_goes_on_as_written() -> None:
    plain, other = make_learner(), make_learner()
    tape = recorded(other)

    class Tight(Tape):
        def __call__(self, work: Callable[[], Any]) -> tuple[Any, Any]:
            super().__call__(work)
            raise torch.OutOfMemoryError

    told: list[str] = []
    other.replays = Replays(other.decoder, tape.parameters, Tight(tape.parameters), told.append)
    for number in range(4):
        step = ragged_step([PACKS[0]], seed=number)
        plain.learn(step, 1e-2, number)
        other.learn(step, 1e-2, number)
    torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=3e-6)
    assert not other.replays.hold_memory and other.limits == plain.limits
    assert told == ["not enough memory to record a step as a CUDA graph; going on without, which is slower"]


def test_copies_of_factors_that_moved_are_found_where_they_are() -> None:
    plain, other = make_learner(), make_learner()
    tape = recorded(other)
    for number in range(6):
        step = ragged_step([PACKS[0]], seed=number)
        plain.learn(step, 1e-2, number)
        if number == 3:
            other.decoder.layers[0].qkv._stacked = None
        other.learn(step, 1e-2, number)
    torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=3e-6)
    assert tape.forgotten >= 1


def test_graphs_are_not_without_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_GRAPHS", 3)
    learner = make_learner()
    tape = recorded(learner)
    for length in (60, 120, 180, 250, 500):
        for number in range(2):
            learner.learn(make_step([documents([length], number)]), 1e-3, number)
    assert tape.graphs == 3


def test_what_keeps_a_gpu_busy_anyway_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor padded; before and after recorded micro-batches of the same step, or alone."""
    plain, other = (make_learner(limits=Limits(32, 0, 16)) for _ in range(2))
    monkeypatch.setattr(replay, "MOST_WORK", 31 * other.decoder.config.hidden_size**2)
    tape = recorded(other)
    met: set[int] = set()

    def watched(decoder: Decoder, batch: Batch, chunk_rows: int) -> sft.Loss:
        met.add(batch.num_tokens)
        return sft.loss(decoder, batch, chunk_rows)

    other.objective = watched
    for number, packs in enumerate([[[20], [40]], [[40], [20]], [[20]], [[40]], [[20], [40]], [[40], [20]]] * 2):
        step = ragged_step(packs, seed=number)
        told, wanted = other.learn(step, 1e-2, number), plain.learn(step, 1e-2, number)
        # No nearer than weights are asked to be: on one thread the two are equal, on two 1.1e-5 apart after 12 steps,
        # since sums over other numbers of rows are cut otherwise.
        assert told.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
        torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=3e-6)
    assert 40 in met and 20 not in met and 1 <= tape.graphs <= 2 and tape.replays > 4


@pytest.mark.parametrize("micro", [10**6, 32])
def test_recorded_work_makes_room_for_other_shapes(micro: int) -> None:
    """Where both do not fit: also in the middle of a step, whose gradients so far are kept."""
    plain, other = (make_learner(limits=Limits(micro, 0, 16)) for _ in range(2))
    tape = recorded(other)
    tape.roomy = False
    for number in range(8):
        step = ragged_step([*PACKS[number % 2 : number % 2 + 1 + number % 3], [70 + 64 * (number // 3)]], seed=number)
        told, wanted = other.learn(step, 1e-2, number), plain.learn(step, 1e-2, number)
        assert told.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)
        torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=3e-6)
    assert tape.forgotten and tape.replays


def test_what_is_not_finite_is_named_and_the_next_step_is_as_if_it_had_not_been() -> None:
    plain, other = make_learner(), make_learner()
    recorded(other)
    steps = [make_step([documents([7, 12, 3], number)]) for number in range(5)]
    for number, step in enumerate(steps):
        plain.learn(step, 1e-2, number)
        if number == 3:
            bad = replace(step.batches[0], weights=step.batches[0].weights * float("inf"))
            told = other.learn(make_step([bad]), 1e-2, number)
            assert told.bad_place == "the loss"
        other.learn(step, 1e-2, number)
    torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=3e-6)


LENGTHS = st.lists(st.integers(2, 90), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 99), st.sampled_from([1, 100, 10**6]))
def test_padding(lengths: list[int], seed: int, most_tokens: int) -> None:
    batch = documents(lengths, seed).with_rows()
    shape = shape_of(batch, most_tokens)
    longer = padded(batch, shape)
    tokens = batch.num_tokens
    assert Shape(longer.num_tokens, longer.num_examples, longer.max_length, len(longer.rows)) == shape  # type: ignore[arg-type]
    assert tokens <= shape.tokens <= max(most_tokens, tokens) and shape.tokens - tokens < max(GRAIN, tokens / 4)
    assert shape.rows <= shape.tokens and shape.max_length >= max(lengths)
    for name in ("ids", "positions", "weights"):
        assert torch.equal(getattr(longer, name)[:tokens], getattr(batch, name))
    borders = longer.cu_seqlens
    assert torch.equal(borders[: len(lengths) + 1], batch.cu_seqlens) and borders[-1] == shape.tokens
    assert (borders.diff() >= 0).all() and borders.diff().max() <= shape.max_length
    trained = batch.labels != IGNORED
    assert torch.equal(longer.labels[:tokens][trained], batch.labels[trained])
    assert (longer.weights[:tokens][~trained] == 0).all() and (longer.weights[tokens:] == 0).all()
    rows = longer.rows
    assert rows is not None and (rows.diff() > 0).all() and set(batch.rows.tolist()) <= set(rows.tolist())  # type: ignore[union-attr]
    assert (longer.labels[rows] >= 0).all()


@pytest.mark.parametrize("lengths", [[7, 12, 3], [64], [100, 28], [2, 2, 2]])
def test_a_padded_batch_has_the_same_loss_and_gradient(lengths: list[int]) -> None:
    batch = documents(lengths, 3).with_rows()
    results: list[tuple[float, int, list[torch.Tensor]]] = []
    for one in _forms(batch):
        learner = make_learner()
        loss = sft.loss(learner.decoder, one, 16)
        loss.loss_sum.backward()
        grads = [p.grad for p in learner.parameters.values() if p.grad is not None]
        results.append((loss.loss_sum.item(), int(loss.correct), grads))
    (loss_, correct, grads), (padded_loss, padded_correct, padded_grads) = results
    assert padded_loss == pytest.approx(loss_, rel=1e-6) and padded_correct == correct
    for left, right in zip(padded_grads, grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def _forms(batch: Batch) -> Iterator[Batch]:
    yield batch
    yield padded(batch, shape_of(batch, 10**6))
