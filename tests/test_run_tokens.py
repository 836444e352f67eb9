"""``model.add_tokens``: new ids in training, in checkpoints, after a restart, and in what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export_full import IDS, checkpoint_of, theirs

import whippet
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import UsageError
from whippet.export import export
from whippet.recipe import make_recipe
from whippet.run import Run, finetune, plan
from whippet.train import learner

TOKENS = ["<think>", "</think>", "<|im_end|>"]
"""Two that are new, and one that the vocabulary has."""
CHAT = [{"role": "user", "content": "the quick"}, {"role": "assistant", "content": "<think>hm</think>brown"}]


def trained(base: Path, out: Path, **changes: Any) -> Run:
    data = base.parent / "d.jsonl"
    data.write_text("".join(json.dumps({"messages": CHAT}) + "\n" for _ in range(6)))
    train = {"method": "full", "max_steps": 3, "learning_rate": 1e-2, "save_every": 1, "tokens_per_step": 128}
    model = {"device": "cpu", "add_tokens": TOKENS}
    return finetune(base, data, out=out, model=model, train=train | changes)


@pytest.mark.parametrize("case", ["llama", "tied"])
def test_new_tokens_are_trained_and_kept(case: str, tmp_path: Path) -> None:
    base = checkpoint_of(case, tmp_path / "base")
    run = trained(base, tmp_path / "run")
    before, tokenizer, model = Tokenizer.load(base), run.model().tokenizer, run.model()
    assert (before.vocab_size, tokenizer.vocab_size, model.decoder.config.vocab_size) == (300, 302, 302)
    ids = tokenizer.encode("<think>hm</think>")
    assert ids == [300, *before.encode("hm"), 301] and tokenizer.decode(ids, skip_special=True) == "<think>hm</think>"
    assert tokenizer.token_id("<|im_end|>") == before.token_id("<|im_end|>")
    mean = whippet.load(base, device="cpu", base="fp32").decoder.embedding.mean(0)
    assert all((model.decoder.embedding[row] - mean).norm() > 1e-3 for row in (300, 301))
    report = json.loads((run.folder / "data.json").read_text())["notes"]
    assert report == ["2 tokens added to the vocabulary of 300", "model.add_tokens: '<|im_end|>' was there already"]
    live = model.logits([*IDS, 300, 301])
    out = export(run.folder, "hf", tmp_path / "hf", dtype="fp32", device="cpu").out
    for place in (run.folder, run.folder / "model", out):
        again = whippet.load(place, device="cpu", base="fp32")
        assert again.prompt_ids(CHAT) == model.prompt_ids(CHAT) and 300 in model.prompt_ids(CHAT)
        torch.testing.assert_close(again.logits([*IDS, 300, 301]), live, rtol=1e-5, atol=1e-5)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 302
    assert (theirs(out) - live[: len(IDS)]).abs().max() < 1e-4
    assert "model.add_tokens | \\<think\\>, \\</think\\>" in (out / "README.md").read_text()


def test_rows_begin_as_they_were_and_as_the_mean(tmp_path: Path) -> None:
    base = checkpoint_of("llama", tmp_path / "base")
    tuned = trained(base, tmp_path / "run", max_steps=1, learning_rate=1e-9).model().decoder
    plain = whippet.load(base, device="cpu", base="fp32").decoder
    for now, was in ((tuned.embedding, plain.embedding), (tuned.head_weight, plain.head_weight)):
        assert (now[:300] - was).abs().max() < 1e-7 and (now[300:] - was.mean(0)).abs().max() < 1e-6


def test_a_resumed_run_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = checkpoint_of("llama", tmp_path / "base")
    whole = trained(base, tmp_path / "whole").model().decoder.embedding
    learn, calls = learner.Learner.learn, []

    def dies(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return learn(self, *arguments)

    monkeypatch.setattr(learner.Learner, "learn", dies)
    with pytest.raises(RuntimeError, match="killed"):
        trained(base, tmp_path / "parts")
    assert torch.equal(trained(base, tmp_path / "parts").model().decoder.embedding, whole)


def test_an_adapter_would_not_train_them(tmp_path: Path) -> None:
    base = checkpoint_of("llama", tmp_path / "base")
    with pytest.raises(UsageError, match=r'model.add_tokens: an adapter trains no rows .* train.method = "full"'):
        trained(base, tmp_path / "run", method="lora")
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_the_rows(tmp_path: Path) -> None:
    base = checkpoint_of("llama", tmp_path / "base")
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    places = {"model.path": base, "data.sources": [tmp_path / "d.jsonl"], "model.device": "cpu", "train.method": "full"}
    plain, more = (plan(make_recipe(None, {**places, "model.add_tokens": tokens})).plan for tokens in ([], TOKENS))
    assert more.num_parameters - plain.num_parameters == 2 * 2 * 64
