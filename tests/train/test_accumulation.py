"""Accumulated gradients are those of the whole batch: every factoring of one step, in fp32 and with bf16 compute."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers_models import TINY, random_decoder
from helpers_train import make_learner, make_step
from torch import Tensor

from whippet.data.batches import Batch, make_batch
from whippet.data.weigh import Weighed
from whippet.model.decoder import Decoder
from whippet.train import learner
from whippet.train.limits import Limits
from whippet.train.objectives import sft

FACTORINGS = ((1, 16), (2, 8), (4, 4), (8, 2), (16, 1))
"""Documents of a micro-batch, and micro-batches of a step."""
BOUND = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


def ragged(seed: int) -> list[Weighed]:
    """16 documents of 2 to 60 tokens, of which one token, some or all but the first carry loss: a mean of the means of
    micro-batches is far from the mean."""
    draw = random.Random(seed)
    found = []
    for number in range(16):
        length = draw.choice((2, 3, 7, 19, 33, 60))
        weights = np.zeros(length, dtype=np.float32)
        first = (1, length - 1, draw.randint(1, length - 1))[number % 3]
        weights[first:] = draw.choice((1.0, 1.0, 0.3))
        ids = np.array([draw.randrange(TINY.vocab_size) for _ in range(length)], dtype=np.int32)
        found.append(Weighed(ids, weights))
    draw.shuffle(found)
    return found


@dataclass(frozen=True)
class Outcome:
    """What one step gave."""

    loss: float
    norm: float
    trained: int
    gradients: dict[str, Tensor]


def learnt(packs: list[Batch], method: str, dtype: torch.dtype, micro_tokens: int, chunk_rows: int) -> Outcome:
    """One step of a fresh learner, whose weights are the same each time."""
    decoder = random_decoder(dtype=dtype)
    limits = Limits(micro_tokens=micro_tokens, recompute=0, chunk_rows=chunk_rows)
    made = make_learner(method=method, decoder=decoder, limits=limits, clip=0.0)
    told = made.learn(make_step(packs), 1e-3, 0)
    gradients = {name: p.grad.double() for name, p in made.parameters.items() if p.grad is not None}
    assert gradients and len(gradients) == len(made.parameters)
    return Outcome(told.loss, told.grad_norm, told.num_trained, gradients)


def assert_same(one: Outcome, other: Outcome, bound: float) -> None:
    """Loss, norm and each gradient as a whole agree to ``bound``, relatively."""
    assert one.trained == other.trained
    assert one.loss == pytest.approx(other.loss, rel=bound)
    assert one.norm == pytest.approx(other.norm, rel=bound)
    for name, gradient in one.gradients.items():
        assert float((gradient - other.gradients[name]).norm() / gradient.norm()) <= bound, name


def assert_all_same(found: list[Outcome], bound: float) -> None:
    for one, other in combinations(found, 2):
        assert_same(one, other, bound)


SEEDS = pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])


@SEEDS
@pytest.mark.parametrize("dtype", BOUND, ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_factoring_of_16_ragged_documents_is_one_step(
    method: str, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 x 16, 2 x 8, 4 x 4, 8 x 2 and 16 x 1, each against each: 1e-6 in fp32, 5e-3 with bf16 compute."""
    # Each pack is a micro-batch, whatever its size.
    monkeypatch.setattr(learner, "micro_batches", lambda batches, most_tokens: iter(batches))
    documents, found = ragged(seed), []
    for micro, count in FACTORINGS:
        packs = [make_batch(documents[place : place + micro]) for place in range(0, 16, micro)]
        assert len(packs) == count
        found += [learnt(packs, method, dtype, 10**6, chunk_rows) for chunk_rows in (7, 64)]
    assert_all_same(found, BOUND[dtype])


@SEEDS
@pytest.mark.parametrize("dtype", BOUND, ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_limit_of_tokens_is_one_step(method: str, dtype: torch.dtype, seed: int) -> None:
    """The learner's own micro-batches, joined and parted from packs of four, for each limit from 1 token to all."""
    documents = ragged(seed)
    packs = [make_batch(documents[place : place + 4]) for place in range(0, 16, 4)]
    found = [learnt(packs, method, dtype, most, 64) for most in (1, 40, 61, 90, 150, 10**6)]
    assert_all_same(found, BOUND[dtype])


def test_a_mean_of_means_would_show() -> None:
    """The documents are ragged enough that averaging each micro-batch by itself misses both bounds."""

    def averaged(decoder: Decoder, batch: Batch, chunk_rows: int) -> sft.Loss:
        loss = sft.loss(decoder, batch, chunk_rows)
        return replace(loss, loss_sum=loss.loss_sum / batch.weight_sum)

    documents = ragged(0)
    means = []
    for packs in ([make_batch(documents)], [make_batch([one]) for one in documents]):
        losses = [float(averaged(random_decoder(), pack, 64).loss_sum.detach()) for pack in packs]
        means.append(sum(losses) / len(losses))
    assert abs(means[0] / means[1] - 1) > 2 * BOUND[torch.bfloat16]
