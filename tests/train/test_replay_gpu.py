"""CUDA graphs of real micro-batches, and how often a step waits for the GPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from whippet.bench.settings import SHAPES, Setting
from whippet.bench.steps import make_learner
from whippet.data.batches import DataPosition, Step, make_batch
from whippet.data.weigh import Weighed
from whippet.train.learner import Learner
from whippet.train.limits import Limits
from whippet.train.replay import Replays

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = torch.device("cuda")


def learner_of(limits: Limits, *, replays: bool) -> Learner:
    learner, _ = make_learner(Setting("tiny"), DEVICE, limits)
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.02, generator=torch.Generator("cuda").manual_seed(len(name)))
    if not replays:
        learner.replays = Replays(learner.decoder, list(learner.parameters.values()), None)
    return learner


def step_of(lengths: list[int], seed: int) -> Step:
    draw = torch.Generator().manual_seed(seed)
    documents = []
    for length in lengths:
        weights = (torch.rand(length, generator=draw) < 0.6).float().numpy()
        weights[0], weights[-1] = 0.0, 1.0
        ids = torch.randint(0, SHAPES["tiny"].vocab_size, (length,), generator=draw, dtype=torch.int32).numpy()
        documents.append(Weighed(ids, weights))
    batch = make_batch(documents)
    return Step((batch,), batch.weight_sum, batch.num_tokens, batch.num_examples, DataPosition())


@pytest.mark.parametrize(
    "limits", [Limits(4096, 0, 256), Limits(300, 0, 64), Limits(4096, 8, 256, 8), Limits(4096, 5, 64, 3)]
)
def test_replayed_steps_are_those_that_run_as_written(limits: Limits) -> None:
    """Shapes in changing order, one and several micro-batches a step."""
    ours, plain = learner_of(limits, replays=True), learner_of(limits, replays=False)
    lengths = [[300, 17, 120], [64] * 5, [300, 20, 100], [900, 3, 40, 250], [60] * 5]
    for number in range(20):
        step = step_of(lengths[number % 5], number)
        told, wanted = ours.learn(step, 1e-3, number), plain.learn(step, 1e-3, number)
        assert told.loss == pytest.approx(wanted.loss, rel=2e-3)
        assert told.num_trained == wanted.num_trained
        assert told.grad_norm == pytest.approx(wanted.grad_norm, rel=3e-2)
    assert ours.replays.hold_memory and not plain.replays.hold_memory


def test_a_recorded_step_is_its_first_run_again() -> None:
    """From the same weights, four times the same data: as written, recorded, replayed. The loss to the last bit;
    gradients but for the order in which FlashAttention adds."""
    learner = learner_of(Limits(4096, 0, 256), replays=True)
    step = step_of([300, 17, 120], 1)
    losses, gradients = set(), []
    for _ in range(4):
        losses.add(learner.learn(step, 0.0, 0).loss)
        gradients.append([p.grad.clone() for p in learner.parameters.values() if p.grad is not None])
    assert len(losses) == 1
    for others in gradients[1:]:
        for other, first in zip(others, gradients[0], strict=True):
            assert (other - first).norm() <= 1e-2 * first.norm()


def test_a_step_waits_for_the_gpu_once() -> None:
    learner = learner_of(Limits(4096, 0, 256), replays=True)
    for number in range(4):
        learner.learn(step_of([300, 17, 120], number), 1e-3, number)
    step = step_of([300, 17, 120], 9)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            learner.learn(step, 1e-3, 9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in seen if "called a synchronizing" in str(one.message)]
    assert len(waits) == 1, waits
