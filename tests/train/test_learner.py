"""A step is the same however it is cut into micro-batches, whatever memory does; what is not finite moves nothing."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers_infer import make_decoder
from helpers_train import VOCABULARY, example, make_learner, make_step, ragged_step, weights_of
from torch import nn

from whippet.data.batches import Batch, make_batch
from whippet.errors import WhippetError
from whippet.model.decoder import Decoder
from whippet.train.learner import Learner
from whippet.train.limits import LEAST_CHUNK_ROWS, LEAST_TILE, Limits
from whippet.train.micro import joined, micro_batches
from whippet.train.objectives import sft

LENGTHS = [7, 12, 3, 20, 9, 5, 16, 4, 11, 6, 14, 8, 10, 13, 2, 18]


def hand_written_loss(decoder: Decoder, batches: list[Batch]) -> torch.Tensor:
    """A loop over documents and tokens, with full logits."""
    total, weight_sum = torch.zeros((), dtype=torch.float64), 0.0
    for batch in batches:
        borders = batch.cu_seqlens.tolist()
        for start, end in pairwise(borders):
            ids = batch.ids[start:end]
            one = torch.tensor([0, len(ids)], dtype=torch.int32)
            logits_TV = decoder.logits(decoder(ids, torch.arange(len(ids)), one, len(ids)))
            for place in range(len(ids) - 1):
                weight = float(batch.weights[start + place])
                if weight:
                    total = total - weight * logits_TV[place].log_softmax(-1)[ids[place + 1]].double()
                    weight_sum += weight
    return total / weight_sum


@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_and_gradient_are_those_of_a_hand_written_loop(method: str) -> None:
    step = ragged_step([LENGTHS[:5], LENGTHS[5:9]])
    learner = make_learner(method=method, clip=0.0)
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    learnt = learner.learn(step, 1e-3, 0)
    ours = {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(before[name])
    learner.optimizer.zero_grad()
    wanted = hand_written_loss(learner.decoder.eval(), list(step.batches))
    wanted.backward()
    assert learnt.loss == pytest.approx(wanted.item(), rel=1e-6)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, learner.parameters[name].grad, rtol=2e-4, atol=2e-6, msg=name)
    norm = torch.nn.utils.get_total_norm([p.grad for p in learner.parameters.values() if p.grad is not None])
    assert learnt.grad_norm == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro", [1, 2, 4, 8, 16])
def test_every_factoring_of_a_batch_of_16_is_the_same_step(method: str, micro: int) -> None:
    """16 ragged documents as 16 / micro micro-batches of ``micro`` documents each."""
    draw = random.Random(5)
    documents = [example(length, draw, fractional=length % 2 == 0) for length in LENGTHS]
    whole = make_learner(method=method, limits=Limits(10**6, 0, 64))
    told = whole.learn(make_step([make_batch(documents)]), 1e-2, 0)
    packs = [make_batch(documents[place : place + micro]) for place in range(0, 16, micro)]
    parts = make_learner(method=method, limits=Limits(1, 0, 16))
    # Packs below are not joined (each alone is longer than 1 token) nor, with a large limit for parting, cut.
    parts.limits = Limits(max(pack.num_tokens for pack in packs), 0, 16)
    learnt = parts.learn(make_step(packs), 1e-2, 0)
    assert learnt.loss == pytest.approx(told.loss, rel=1e-6)
    assert learnt.grad_norm == pytest.approx(told.grad_norm, rel=1e-6)
    assert (learnt.accuracy, learnt.num_trained) == (told.accuracy, told.num_trained)
    for (name, left), right in zip(whole.parameters.items(), parts.parameters.values(), strict=True):
        assert left.grad is not None and right.grad is not None
        difference = (left.grad - right.grad).norm() / left.grad.norm()
        assert float(difference) <= 1e-6, name


def test_micro_batches_keep_the_order_and_the_limit() -> None:
    step = ragged_step([LENGTHS[:6], LENGTHS[6:10], LENGTHS[10:]])
    ids = torch.cat([batch.ids for batch in step.batches])
    for limit in (1, 15, 20, 33, 64, 100, 1000):
        parts = list(micro_batches(step.batches, limit))
        assert torch.equal(torch.cat([part.ids for part in parts]), ids)
        assert sum(part.weight_sum for part in parts) == pytest.approx(step.weight_sum)
        for part in parts:
            assert part.num_tokens <= limit or part.num_examples == 1
            lengths = part.cu_seqlens.diff()
            assert part.max_length == int(lengths.max()) and part.num_tokens == int(lengths.sum())
    assert len(list(micro_batches(step.batches, 1000))) == 1
    assert len(list(micro_batches(step.batches, 1))) == len(LENGTHS)


def test_untrained_packs_are_left_out() -> None:
    draw = random.Random(0)
    silent = example(6, draw)
    silent.weights[:] = 0
    packs = [make_batch([silent]), make_batch([example(9, draw)])]
    assert [part.num_tokens for part in micro_batches(packs, 8)] == [9]


def test_joining_keeps_documents_apart() -> None:
    step = ragged_step([[5, 6], [7]])
    one = joined(step.batches)
    assert one.cu_seqlens.tolist() == [0, 5, 11, 18] and one.max_length == 7
    assert torch.equal(one.positions, torch.cat([torch.arange(n) for n in (5, 6, 7)]))


class Failing:
    """An objective for which memory is only enough for so many tokens; it can fail after the backward pass began."""

    def __init__(self, most_tokens: int, *, late: bool = False) -> None:
        self.most_tokens, self.late, self.failures = most_tokens, late, 0

    def __call__(self, decoder: Decoder, batch: Batch, chunk_rows: int) -> sft.Loss:
        loss = sft.loss(decoder, batch, chunk_rows)
        if batch.num_tokens <= self.most_tokens or (chunk_rows <= LEAST_CHUNK_ROWS and batch.num_examples == 1):
            return loss
        self.failures += 1
        if self.late:
            loss.loss_sum.backward(retain_graph=True)  # half of the gradients are there when memory runs out
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")


def run_steps(learner: Learner, steps: int = 10) -> list[float]:
    found = []
    for number in range(steps):
        learnt = learner.learn(ragged_step([LENGTHS[:8], LENGTHS[8:]], seed=number), 1e-2, number)
        found.append(learnt.loss)
    return found


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("most_tokens", [100, 40, 21])
def test_out_of_memory_changes_nothing_but_the_micro_batches(most_tokens: int, late: bool) -> None:
    plain, short = make_learner(), make_learner()
    failing = Failing(most_tokens, late=late)
    short.objective = failing
    assert run_steps(short) == pytest.approx(run_steps(plain), rel=1e-6)
    assert failing.failures >= 1
    torch.testing.assert_close(weights_of(short), weights_of(plain), rtol=1e-5, atol=1e-6)
    assert short.limits.micro_tokens <= most_tokens
    before = failing.failures
    run_steps(short, 2)
    assert failing.failures == before, "the smaller size was not remembered"
    assert "out of memory" in short.notes[0]  # type: ignore[attr-defined]


def test_a_document_that_does_not_fit_turns_recomputation_on_then_gives_up() -> None:
    learner = make_learner(limits=Limits(4096, 1, 512, halves=1))
    failing = Failing(15)
    learner.objective = failing
    run_steps(learner, 1)
    assert (learner.limits.recompute, learner.limits.halves) == (2, 0)
    assert learner.limits.chunk_rows == LEAST_CHUNK_ROWS
    assert learner._smallest(10_000).tile == LEAST_TILE

    def never(decoder: Decoder, batch: Batch, chunk_rows: int) -> sft.Loss:
        raise torch.OutOfMemoryError("injected")

    learner.objective = never
    with pytest.raises(WhippetError, match=r"one document of \d+ tokens does not fit.*data\.max_length") as caught:
        run_steps(learner, 1)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("limits", [Limits(4096, 2, 64), Limits(4096, 2, 64, park=2, halves=1)], ids=str)
def test_recomputation_gives_the_same_bits(limits: Limits) -> None:
    plain, again = make_learner(dropout=0.2), make_learner(dropout=0.2, limits=limits)
    assert run_steps(plain, 3) == run_steps(again, 3)
    decoder = again.decoder
    assert (decoder.recompute, decoder.park, decoder.halves) == (limits.recompute, limits.park, limits.halves)
    assert torch.equal(weights_of(plain), weights_of(again))


def test_dropout_is_drawn_from_the_seed() -> None:
    one, two, other = (make_learner(dropout=0.3) for _ in range(3))
    step = ragged_step([LENGTHS])
    assert one.learn(step, 1e-3, 7) == two.learn(step, 1e-3, 7)
    assert other.learn(step, 1e-3, 8).loss != pytest.approx(one.learn(step, 1e-3, 7).loss, rel=1e-9)


def poison_output(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output * float("nan")


class PoisonedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * float("inf")


@pytest.mark.parametrize("where", ["activation", "gradient", "loss", "weight", "factor"])
def test_what_is_not_finite_is_named_and_moves_nothing(where: str) -> None:
    learner = make_learner(limits=Limits(40, 0, 64))
    step = ragged_step([LENGTHS[:4], LENGTHS[4:8]])
    learner.learn(step, 1e-2, 0)
    before, states = weights_of(learner), str(learner.optimizer.state_dict()["state"])
    decoder = learner.decoder
    match where:
        case "activation":
            decoder.layers[1].gate_up.register_forward_hook(poison_output)
            wanted = "output of layers.1.gate_up"
        case "gradient":
            decoder.layers[0].register_forward_hook(lambda m, i, out: PoisonedGradient.apply(out))
            wanted = "gradient of layers.0.q_proj.a"
        case "weight":
            with torch.no_grad():
                decoder.layers[0].o.dense[1, 2] = float("inf")
            wanted = "weight layers.0.o.weight"
        case "factor":
            with torch.no_grad():
                learner.parameters["layers.0.q_proj.a"][1, 2] = float("nan")
            before, wanted = weights_of(learner), "weight layers.0.q_proj.a"
        case _:
            learner.objective = lambda d, b, c: sft.Loss(sft.loss(d, b, c).loss_sum * float("inf"), torch.tensor(0), 1)
            wanted = "the loss"
    learnt = learner.learn(step, 1e-2, 1)
    assert learnt.bad_place == wanted
    assert torch.equal(weights_of(learner).nan_to_num(), before.nan_to_num())
    assert str(learner.optimizer.state_dict()["state"]) == states
    if where == "gradient":
        assert learnt.bad_batch is None
    else:
        assert learnt.bad_batch is not None and learnt.bad_batch.num_tokens <= 40


def test_full_training_reaches_every_weight() -> None:
    learner = make_learner(method="full", decoder=make_decoder(vocab_size=VOCABULARY))
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    learner.learn(ragged_step([LENGTHS]), 1e-2, 0)
    assert all(not torch.equal(before[name], p) for name, p in learner.parameters.items())
