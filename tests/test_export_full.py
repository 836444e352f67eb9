"""Full fine-tuning of tied and untied models, exported and read back: the live logits, and the right tie flag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_infer import CHAT, make_tokenizer
from helpers_models import oracle
from helpers_train import write_records
from safetensors import safe_open
from torch import Tensor

import whippet
from whippet.run import Run

IDS = [0, 2, 17, 44, 90, 123, 201, 250, 299, 5, 64, 3]
CASES = {"llama": False, "llama-3": False, "tied": True, "biased": False, "qwen2": False, "qwen2-tied": True}
"""Kinds of models, and whether their output matrix is the embedding."""
BOUND = 1e-5


def checkpoint_of(case: str, folder: Path) -> Path:
    """A random checkpoint with a tokenizer and a chat template."""
    oracle(case, vocab_size=300).save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def trained(checkpoint: Path, data: Path, out: Path, **train: Any) -> Run:
    """A few steps, large enough to move everything."""
    chosen = {"method": "full", "max_steps": 4, "learning_rate": 1e-2, "tokens_per_step": 256, "save_every": 2} | train
    return whippet.finetune(checkpoint, data, out=out, model={"device": "cpu"}, train=chosen)


def theirs(path: Path) -> Tensor:
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0]


def names_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_is_exported_and_read_back(case: str, tmp_path: Path) -> None:
    """``model/`` of the run and its export in fp32, by whippet and by transformers, within 1e-5 of the live model."""
    pytest.importorskip("transformers")
    tied = CASES[case]
    base = checkpoint_of(case, tmp_path / "base")
    run = trained(base, write_records(tmp_path / "d.jsonl"), tmp_path / "run")
    live = run.model().logits(IDS)
    assert (live - theirs(base)).abs().max() > 0.1, "training changed something"
    exported = run.export("hf", dtype="fp32", device="cpu").out
    for folder in (run.folder / "model", exported):
        config = json.loads((folder / "config.json").read_text())
        assert config["tie_word_embeddings"] is tied
        assert ("lm_head.weight" in names_in(folder / "model.safetensors")) is not tied
        ours = whippet.load(folder, "fp32", device="cpu", compute="fp32")
        assert ours.decoder.config.tie_embeddings is tied
        assert (ours.logits(IDS) - live).abs().max() <= BOUND
        assert (theirs(folder) - live).abs().max() <= BOUND
    assert (whippet.load(run.folder, device="cpu").logits(IDS) - live).abs().max() <= BOUND


@pytest.mark.parametrize("case", ["llama", "tied"])
def test_the_output_matrix_is_trained_as_it_is_tied(case: str, tmp_path: Path) -> None:
    """Tied, the one matrix takes both gradients; untied, both matrices move and differ."""
    pytest.importorskip("transformers")
    base = checkpoint_of(case, tmp_path / "base")
    run = trained(base, write_records(tmp_path / "d.jsonl"), tmp_path / "run", max_steps=1, weight_decay=0.0)
    decoder = run.model().decoder
    embedding, head = decoder.embedding.detach(), decoder.head_weight.detach()
    with safe_open(base / "model.safetensors", "pt") as file:
        before = file.get_tensor("model.embed_tokens.weight")
        head_before = before if CASES[case] else file.get_tensor("lm_head.weight")
    assert torch.equal(embedding, head) is CASES[case]
    # A token that occurs nowhere gets a gradient through the output matrix alone.
    assert torch.equal(embedding[299], before[299]) is not CASES[case]
    assert not torch.equal(head[299], head_before[299])
    assert not torch.equal(embedding[2], before[2])


@pytest.mark.parametrize("case", ["llama", "tied"])
def test_a_resumed_run_exports_the_same(case: str, tmp_path: Path) -> None:
    """Stopped after a step and gone on, or in one go: the same files, to the bit."""
    pytest.importorskip("transformers")
    base, data = checkpoint_of(case, tmp_path / "base"), write_records(tmp_path / "d.jsonl")
    schedule = {"schedule": "constant", "warmup": 0}
    whole = trained(base, data, tmp_path / "a", **schedule)
    trained(base, data, tmp_path / "b", max_steps=2, **schedule)
    again = trained(base, data, tmp_path / "b", **schedule)
    written = [run.export("hf", dtype="fp32", device="cpu").out for run in (whole, again)]
    one, two = ((folder / "model.safetensors").read_bytes() for folder in written)
    assert one == two
