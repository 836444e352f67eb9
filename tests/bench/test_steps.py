"""What is timed is what the loop runs, and on a GPU the plan's peak is held."""

from __future__ import annotations

import itertools

import pytest
import torch

from whippet.bench.settings import CPU_ROWS, ROWS, SHAPES, Row, Setting, shape_of
from whippet.bench.steps import make_learner, measure, random_step, time_steps, workload
from whippet.errors import UsageError
from whippet.model.size import parameters
from whippet.train.limits import Limits

CPU = torch.device("cpu")
SMALL = Setting("tiny", docs=3, length=40)


def test_the_shapes_are_those_of_the_models() -> None:
    others = {"qwen-7b": 7.62, "gemma-9b": 9.24, "mistral-7b": 7.25, "phi-4b": 3.82}
    billions = {name: round(parameters(config) / 1e9, 2) for name, config in SHAPES.items()}
    assert billions == {"8b": 8.03, "70b": 70.55, "3b": 3.21, "1b": 1.24, "tiny": 0.0, **others}
    assert {row.setting.shape for row in (*ROWS, *CPU_ROWS)} == set(SHAPES)
    assert all(shape_of(config) == name for name, config in SHAPES.items())


def test_rows_have_names_of_their_own_and_warm_up() -> None:
    rows = (*ROWS, *CPU_ROWS)
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.warmup >= 3 for row in rows)  # compiled, recorded, replayed
    assert Row("x", SMALL, "cold").needs == ("--checkpoint",) and Row("x", SMALL).needs == ()


def test_a_step_has_the_tokens_that_it_says() -> None:
    step = random_step(SMALL, 1536, 0)
    assert step.num_tokens == SMALL.tokens == 120
    assert step.weight_sum == 3 * 39 and step.batches[0].cu_seqlens.tolist() == [0, 40, 80, 120]


def test_figures_agree_with_each_other() -> None:
    measured = measure(SMALL, CPU, steps=3, warmup=1)
    assert measured.tokens_per_s == pytest.approx(120 / measured.step_s)
    assert measured.fastest_s <= measured.step_s <= measured.slowest_s
    assert 6.5 < measured.loss < 8.5  # near log 1536
    assert measured.peak is None and measured.planned > 2**20
    assert max(map(len, str(measured).splitlines())) <= 80


def test_as_many_steps_are_done_as_asked_and_each_is_told() -> None:
    learner, _ = make_learner(SMALL, CPU)
    times, peak = time_steps(learner, (random_step(SMALL, 1536, number) for number in itertools.count()), 3)
    assert [(one.tokens, one.examples) for one in times] == [(120, 3)] * 3 and peak.allocated is None
    assert len({one.loss for one in times}) == 3


def test_a_workload_of_other_lengths() -> None:
    work = workload(SMALL, CPU, longest=77, tokens=999)
    assert (work.longest, work.tokens_per_step, work.config) == (77, 999, SHAPES["tiny"])


@pytest.mark.parametrize("base", ["nf4", "fp8", "bf16"])
def test_limits_change_no_loss(base: str) -> None:
    setting = Setting("tiny", docs=3, length=40, base=base)  # type: ignore[arg-type]
    losses = {
        measure(setting, CPU, steps=1, warmup=1, limits=limits).loss
        for limits in (Limits(120, 0, 64), Limits(40, 8, 7, 8))
    }
    assert max(losses) - min(losses) < 1e-5


def test_a_budget_that_holds_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="training needs at least"):
        measure(Setting("tiny", budget="1MiB"), CPU, steps=1, warmup=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("budget", ["2.1GiB", "3GiB", "4GiB", "6GiB", "24GiB"])
def test_the_peak_is_the_planned_one(budget: str) -> None:
    """Within 5 %, and never above the budget."""
    measured = measure(Setting("1b", budget=budget), torch.device("cuda"), steps=2, warmup=2)
    assert measured.peak is not None
    assert measured.peak == pytest.approx(measured.planned, rel=0.05)
