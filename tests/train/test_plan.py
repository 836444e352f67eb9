"""The plan: it fits its budget, says what would when nothing does, and prints itself in 80 columns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers_infer import make_decoder
from helpers_train import make_learner, ragged_step

from whippet.errors import UsageError
from whippet.model.config import ModelConfig
from whippet.options import LoraOptions, Recipe
from whippet.recipe import make_recipe
from whippet.train import speed
from whippet.train.checkpoint import Checkpoint, save
from whippet.train.learner import Limits
from whippet.train.memory import Workload, choose_limits, fixed_bytes, peak_bytes
from whippet.train.optim import optimizer_tensors
from whippet.train.plan import DataFacts, Plan, choose_tokens_per_step, make_plan

LLAMA_8B = ModelConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072)
GIB = 2**30
QLORA = Workload(LLAMA_8B, "nf4", 2, LoraOptions(), "adamw", "cuda", 2048, 16384, 1.0)
DATA = DataFacts(num_examples=500, num_tokens=50_000, num_trained=20_000, longest=300)


def recipe(**overrides: object) -> Recipe:
    dotted = {"model.base": "nf4", **{key.replace("__", "."): value for key, value in overrides.items()}}
    return make_recipe({"model": {"path": "m"}, "data": {"sources": ["d"]}}, dotted)


def planned(tmp_path: Path, budget: int = 24 * GIB, **overrides: object) -> Plan:
    return make_plan(
        recipe(**overrides), LLAMA_8B, DATA, steps=30, tokens_per_step=4096, budget=budget,
        device=torch.device("cpu"), compute=torch.float32, out=tmp_path / "not" / "there",
    )  # fmt: skip


def test_an_8b_qlora_takes_what_such_a_step_takes() -> None:
    """Weights of 8B in NF4 with 16-bit tables are about 5.7 GB; the step of 4096 tokens without recomputation about 21
    GiB, and with it about 7 (measured by others at this shape: 20.8 and 6.8)."""
    assert 5.2 * GIB < fixed_bytes(QLORA) < 6.8 * GIB
    assert 17 * GIB < peak_bytes(QLORA, Limits(4096, 0, 512)) < 23 * GIB
    assert 6.3 * GIB < peak_bytes(QLORA, Limits(4096, 32, 512)) < 8.5 * GIB
    assert 5.9 * GIB < peak_bytes(QLORA, Limits(4096, 32, 512, park=32)) < 7.2 * GIB


@pytest.mark.parametrize("gib", [6.5, 7, 8, 12, 16, 24, 40, 80])
def test_what_is_chosen_fits_and_more_memory_is_never_slower(gib: float) -> None:
    if gib * GIB < peak_bytes(QLORA, Limits(2048, 32, 64, park=32)):
        with pytest.raises(UsageError):
            choose_limits(QLORA, int(gib * GIB))
        return
    limits = choose_limits(QLORA, int(gib * GIB))
    assert peak_bytes(QLORA, limits) <= gib * GIB
    assert limits.micro_tokens >= QLORA.longest
    richer = choose_limits(QLORA, int(1.5 * gib * GIB))
    work = [QLORA.flops_per_token(one.recompute, 2048) * (1 + 768 / one.micro_tokens) for one in (limits, richer)]
    assert work[1] <= work[0]


def test_plenty_of_memory_recomputes_nothing() -> None:
    assert choose_limits(QLORA, 140 * GIB).recompute == 0
    assert choose_limits(QLORA, 12 * GIB).recompute > 0
    assert choose_limits(QLORA, 7 * GIB).park > 0
    assert choose_limits(dataclasses.replace(QLORA, device="cpu"), 12 * GIB).park == 0


def test_nothing_fits_says_what_would() -> None:
    dense = dataclasses.replace(QLORA, base="bf16")
    with pytest.raises(UsageError) as caught:
        choose_limits(dense, 12 * GIB)
    said = str(caught.value)
    assert "may take 12 GiB" in said and 'model.base = "nf4" (' in said
    with pytest.raises(UsageError, match=r"data\.max_length = \d+"):
        choose_limits(dataclasses.replace(QLORA, longest=100_000), 10 * GIB)
    with pytest.raises(UsageError, match=r"a budget of .* would do"):
        choose_limits(QLORA, 2 * GIB)
    full = dataclasses.replace(QLORA, base="fp32", lora=None)
    with pytest.raises(UsageError, match=r'train\.method = "lora"'):
        choose_limits(full, 24 * GIB)


def test_the_plan_prints_in_80_columns_and_is_json(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 80
    assert "30 of about 4,096 tokens (2.46 epochs)" in str(plan)
    told = json.loads(json.dumps(plan.as_dict()))
    assert told["steps"] == 30 and told["limits"]["micro_tokens"] >= 300 and told["examples"]["num_tokens"] == 50_000
    assert told["seconds"] == pytest.approx(30 * told["step_seconds"])
    assert not (tmp_path / "not").exists()


def test_the_micro_batch_is_bounded_on_the_cpu(tmp_path: Path) -> None:
    huge = make_plan(
        recipe(), LLAMA_8B, DATA, steps=1, tokens_per_step=10**6, budget=10**15, device=torch.device("cpu"),
        compute=torch.float32, out=tmp_path,
    )  # fmt: skip
    assert huge.limits.micro_tokens == 4096


@pytest.mark.parametrize(("tokens", "chosen"), [(500, 1024), (50_000, 1024), (466_000, 4096), (10**8, 16384)])
def test_tokens_per_step_follow_the_data(tokens: int, chosen: int) -> None:
    assert choose_tokens_per_step(recipe(), DataFacts(10, tokens, 5, 50)) == chosen
    assert choose_tokens_per_step(recipe(train__tokens_per_step=77), DataFacts(10, tokens, 5, 50)) == 77


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_checkpoint_takes_the_disk_that_was_planned(tmp_path: Path, method: str) -> None:
    """Within 3 % of the tensors' size: here, at a shape large enough for the JSON files not to matter."""
    config = ModelConfig("llama", 4000, 256, 512, 2, 4, 2, 64, 512)
    from whippet.model.decoder import Decoder

    decoder = Decoder(config, device="cpu")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.02)
    lora = {"lora.r": 64, "lora.targets": ["q_proj", "v_proj", "down_proj"]}
    chosen = recipe(**{"train.method": method, **({} if method == "full" else lora)}, **(
        {"model.base": "fp32"} if method == "full" else {}
    ))  # fmt: skip
    learner = make_learner(method=method, decoder=decoder)
    if method == "lora":
        from whippet import lora as adapters

        for _, projection in decoder.projections():
            projection.adapters.clear()
        adapters.attach(decoder, chosen.lora, seed=0)
        learner.parameters = adapters.adapter_parameters(decoder)
        learner.optimizer = torch.optim.AdamW(learner.parameters.values(), fused=True)
    learner.learn(ragged_step([[20, 30]]), 1e-3, 0)
    plan = make_plan(
        chosen, config, DATA, steps=1, tokens_per_step=1024, budget=GIB, device=torch.device("cpu"),
        compute=torch.float32, out=tmp_path,
    )  # fmt: skip
    weights = {name: p.detach() for name, p in learner.parameters.items()}
    path = save(tmp_path, Checkpoint(1, weights, optimizer_tensors(learner.optimizer, learner.parameters), {}), keep=1)
    written = sum(file.stat().st_size for file in path.iterdir())
    assert written == pytest.approx(plan.checkpoint_bytes, rel=0.03)
    assert plan.num_trained == sum(p.numel() for p in learner.parameters.values())


def test_measured_speed_is_one_of_this_planet() -> None:
    assert 1e8 < speed.measured_flops(torch.device("cpu"), torch.float32) < 1e14
    assert speed.peak_flops(torch.device("cpu")) is None
    memory = speed.peak_memory(torch.device("cpu"))
    assert memory is None or memory > 50 * 2**20


def test_the_tiny_decoder_is_counted_exactly() -> None:
    from whippet.model.size import parameters

    decoder = make_decoder()
    assert parameters(decoder.config) == sum(p.numel() for p in decoder.parameters())
