"""``whippet bench``: what it times is what the loop runs, and on a GPU the plan's peak is held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from whippet import bench
from whippet.bench import CPU_SETTINGS, SETTINGS, SHAPES, Setting, measure, random_step
from whippet.cli.main import main
from whippet.errors import UsageError
from whippet.model.size import parameters
from whippet.train.learner import Limits

CPU = torch.device("cpu")
SMALL = Setting("tiny", docs=3, length=40)


def test_the_shapes_are_those_of_the_models() -> None:
    billions = {name: round(parameters(config) / 1e9, 2) for name, config in SHAPES.items()}
    assert billions == {"8b": 8.03, "3b": 3.21, "1b": 1.24, "tiny": 0.0}
    assert {setting.shape for setting in (*SETTINGS, *CPU_SETTINGS)} == set(SHAPES)


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


@pytest.mark.parametrize("base", ["nf4", "bf16"])
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


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CPU_SETTINGS", (SMALL,))
    assert main(["bench", "--steps", "2", "--device", "cpu", "--json", "--out", str(tmp_path / "b.json")]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told == json.loads((tmp_path / "b.json").read_text())
    assert told["results"][0]["setting"]["shape"] == "tiny" and told["versions"]["torch"] == torch.__version__
    assert told["command"] == "whippet bench --steps 2 --device cpu" and "tokens/s" in err
    assert main(["bench", "9b"]) == 2 and main(["bench", "--steps", "0"]) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("budget", ["2.1GiB", "3GiB", "4GiB", "6GiB", "24GiB"])
def test_the_peak_is_the_planned_one(budget: str) -> None:
    """Within 5 %, and never above the budget."""
    measured = measure(Setting("1b", budget=budget), torch.device("cuda"), steps=2, warmup=2)
    assert measured.peak is not None
    assert measured.peak == pytest.approx(measured.planned, rel=0.05)
