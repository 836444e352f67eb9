"""The optimiser: schedules, decay, clipping, and states that survive a restart bit for bit."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers_infer import make_decoder
from helpers_train import make_learner, ragged_step
from torch import nn

from whippet.errors import MissingExtra, ModelError
from whippet.lora import merged_weight
from whippet.options import TrainOptions
from whippet.train import optim
from whippet.train.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer


def rates(total: int, **options: object) -> list[float]:
    chosen = TrainOptions(learning_rate=1.0, **options)  # type: ignore[arg-type]
    return [learning_rate(step, total, chosen) for step in range(1, total + 1)]


def test_linear_rises_then_falls() -> None:
    assert rates(10, warmup=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_warmup_below_one_is_a_share() -> None:
    assert rates(10, warmup=0.4) == rates(10, warmup=4)
    assert rates(100, warmup=0.03)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cosine_and_constant() -> None:
    assert rates(4, schedule="cosine", warmup=0) == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466])
    assert rates(5, schedule="constant", warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.03, 1, 50])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_every_step_moves(schedule: str, warmup: float, total: int) -> None:
    assert all(0 < rate <= 1 for rate in rates(total, schedule=schedule, warmup=warmup))


def test_decay_is_for_matrices_only() -> None:
    parameters = dict(make_decoder().requires_grad_(True).named_parameters())
    optimizer = make_optimizer(parameters, TrainOptions(weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in parameters.items() if decays[id(p)] == 0} == {
        "norm", *(f"layers.{n}.{norm}_norm" for n in range(2) for norm in ("attention", "mlp")),
    }  # fmt: skip
    assert set(decays.values()) == {0.0, 0.1} and len(decays) == len(parameters)


@pytest.mark.parametrize("clip", [0.0, 1e-3, 0.5, 1e9])
def test_scaling_is_torchs_clipping_of_the_mean(clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    theirs = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = torch.randn(mine.shape, generator=generator)
        other.grad = mine.grad / 7.0
    norm = optim.gradient_norm([p.grad for p in ours if p.grad is not None], 7.0)
    optim.scale_gradients([p.grad for p in ours if p.grad is not None], norm, 7.0, clip)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, clip if clip else float("inf"))
    torch.testing.assert_close(norm, wanted, rtol=1e-6, atol=0)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_states_survive_a_restart_bit_for_bit(optimizer: str) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    step = ragged_step([[9, 7], [12]])
    one = make_learner(method="full", optimizer=optimizer)
    for seed in range(2):
        one.learn(step, 1e-3, seed)
    two = make_learner(method="full", optimizer=optimizer)
    optim.restore_weights(two.parameters, {name: p.detach().clone() for name, p in one.parameters.items()})
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(one.optimizer, one.parameters).items()}
    assert len(saved) >= 3 * len(one.parameters)
    restore_optimizer(two.optimizer, two.parameters, saved)
    for seed in range(2, 4):
        assert one.learn(step, 1e-3, seed) == two.learn(step, 1e-3, seed)
    for (name, left), right in zip(one.parameters.items(), two.parameters.values(), strict=True):
        assert torch.equal(left, right), name
    again = optimizer_tensors(two.optimizer, two.parameters)
    for name, tensor in optimizer_tensors(one.optimizer, one.parameters).items():
        assert torch.equal(tensor, again[name]) and tensor.dtype == again[name].dtype, name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_the_model_sees_each_step_of_its_factors(optimizer: str) -> None:
    """The factors that are multiplied with are copies of the trained ones; a copy that lags would show here."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    learner = make_learner(optimizer=optimizer)
    step = ragged_step([[9, 7], [12]])
    for seed in range(3):
        learner.learn(step, 1e-2, seed)
        for _, projection in learner.decoder.projections():
            x = torch.randn(5, projection.in_size)
            merged = x @ merged_weight(projection).T
            torch.testing.assert_close(projection(x), merged, rtol=0, atol=1e-5)


def test_strange_states_are_refused() -> None:
    learner = make_learner()
    with pytest.raises(ModelError, match="belongs to no trained parameter"):
        restore_optimizer(learner.optimizer, learner.parameters, {"other:exp_avg": torch.zeros(1)})
    weights = {name: p.detach() for name, p in learner.parameters.items()}
    with pytest.raises(ModelError, match="disagree on 1 tensors"):
        optim.restore_weights(learner.parameters, weights | {"other": torch.zeros(1)})
    name = next(iter(weights))
    with pytest.raises(ModelError, match="has the shape"):
        optim.restore_weights(learner.parameters, weights | {name: torch.zeros(1)})


def test_the_8_bit_optimiser_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r"pip install 'whippet\[bnb\]'"):
        optim.check_optimizer(TrainOptions(optimizer="adamw8bit"))
    optim.check_optimizer(TrainOptions())
