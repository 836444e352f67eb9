"""A model that was overfitted ends its answers itself: every generation stops by the end token, none by the limit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers_train import write_records

import whippet
from whippet.demo import HELD_OUT, MODEL, TRAIN
from whippet.infer.dense import dense
from whippet.infer.engine import Reply, generate
from whippet.infer.model import Model
from whippet.infer.sampling import Sampling

END, LIMIT = "<|im_end|>", 64


def questions(data: Path, count: int) -> list[str]:
    """What the first records ask."""
    lines = data.read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def replies(model: Model, asked: list[str], sampling: Sampling) -> list[Reply]:
    """All answers in batches, with what ended each."""
    ids = [model.prompt_ids([{"role": "user", "content": text}]) for text in asked]
    with dense(model.decoder):
        return generate(model.decoder, ids, sampling, model.renderer.stop_ids)


def ends(model: Model, asked: list[str], **sampling: Any) -> Counter[str | None]:
    """How often each token ended an answer; None is the limit."""
    found = replies(model, asked, Sampling(max_new_tokens=LIMIT, **sampling))
    return Counter(None if one.stop_id is None else model.tokenizer.token_text(one.stop_id) for one in found)


def overfitted(checkpoint: Path, data: Path, out: Path, **tables: Any) -> Model:
    """The finished run's model, read back from its folder."""
    train = {"tokens_per_step": 1024, "save_every": 10_000, "schedule": "cosine", **tables.pop("train")}
    run = whippet.finetune(checkpoint, data, out=out, train=train, **tables)
    assert run.summary()["loss_last"] < 0.2 * run.summary()["loss_first"]
    return whippet.load(out, device="cpu")


def test_100_of_100_generations_stop_by_the_end_token(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """All weights of a random model, 100 chats. Before, most answers run into the limit."""
    data = write_records(tmp_path / "d.jsonl", 100)
    asked = questions(data, 100)
    before = ends(whippet.load(tiny_checkpoint, device="cpu", base="fp32"), asked)
    assert before[None] > 50 > before[END]
    train = {"method": "full", "max_steps": 120, "learning_rate": 1e-2}
    model = overfitted(tiny_checkpoint, data, tmp_path / "run", train=train)
    assert ends(model, asked) == {END: 100}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_100_of_100_stop_for_either_method(method: str, seed: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Long enough to know most answers by heart; greedy, and drawn at temperature 0.7."""
    data = write_records(tmp_path / "d.jsonl", 100, seed=seed)
    train = {"method": method, "max_steps": 600, "learning_rate": 1e-2, "seed": seed}
    tables = {} if method == "full" else {"lora": {"r": 64}, "model": {"base": "nf4"}}
    model = overfitted(tiny_checkpoint, data, tmp_path / "run", train=train, **tables)
    asked = questions(data, 100)
    assert ends(model, asked) == {END: 100}
    assert ends(model, asked, temperature=0.7, seed=seed) == {END: 100}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_100_of_100_of_the_embedded_model_stop(tmp_path: Path) -> None:
    """The demonstration's model after its records, asked the held-out ones."""
    train = {"epochs": 2.0, "learning_rate": 3e-3, "tokens_per_step": 2048}
    run = whippet.finetune(MODEL, TRAIN, out=tmp_path / "run", train=train)
    found = replies(run.model(), questions(HELD_OUT, 100), Sampling(max_new_tokens=LIMIT))
    assert [one.finish for one in found] == ["stop"] * 100
    assert {one.stop_id for one in found} <= run.model().renderer.stop_ids
