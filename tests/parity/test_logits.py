"""Logits equal those of transformers, for every family and every field that a family uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import CASES, LLAMA3, change_config, logits, oracle, to_v4

from whippet.errors import ModelError
from whippet.weights.load import load_decoder, read_config

NUM_TOKENS = 60


def ids() -> torch.Tensor:
    return torch.randint(0, 97, (NUM_TOKENS,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = oracle(case)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(ids()[None]).logits[0]
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    new_spelling = load_decoder(tmp_path)
    to_v4(tmp_path)
    old_spelling = load_decoder(tmp_path)
    assert new_spelling.config == old_spelling.config
    assert new_spelling.config.context == 2048
    assert (logits(new_spelling, ids()) - wanted).abs().max() <= 1e-6
    assert (logits(old_spelling, ids()) - wanted).abs().max() <= 1e-6


@pytest.fixture(scope="module")
def flippable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("flip")
    model = oracle("llama-3", attention_bias=True, mlp_bias=True, head_dim=16)
    model.save_pretrained(folder)
    to_v4(folder)
    with torch.no_grad():
        return folder, model(ids()[None]).logits[0]


SCALING = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
FLIPS: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "rms_norm_eps": 1e-3,
    "rope_theta": 4000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
    "factor": {"rope_scaling": SCALING | {"factor": 4.0}},
    "low_freq_factor": {"rope_scaling": SCALING | {"low_freq_factor": 0.5}},
    "high_freq_factor": {"rope_scaling": SCALING | {"high_freq_factor": 8.0}},
    "original_max_position_embeddings": {"rope_scaling": SCALING | {"original_max_position_embeddings": 256}},
    "rope_type": {"rope_scaling": SCALING | {"rope_type": "linear"}},
    "heads at the same width": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
}


@pytest.mark.parametrize("key", FLIPS)
def test_a_changed_field_changes_the_logits(key: str, flippable: tuple[Path, torch.Tensor]) -> None:
    folder, wanted = flippable
    before = (folder / "config.json").read_text()
    change_config(folder, **(FLIPS[key] if isinstance(FLIPS[key], dict) else {key: FLIPS[key]}))
    try:
        met = logits(load_decoder(folder), ids())
    except ModelError:
        return
    finally:
        (folder / "config.json").write_text(before)
    assert met.shape != wanted.shape or (met - wanted).abs().max() > 1e-5


def test_the_unchanged_config_is_equal(flippable: tuple[Path, torch.Tensor]) -> None:
    folder, wanted = flippable
    assert (logits(load_decoder(folder), ids()) - wanted).abs().max() <= 1e-6


def test_with_both_spellings_the_old_one_wins_as_in_transformers(tmp_path: Path) -> None:
    import transformers

    oracle("llama-3").save_pretrained(tmp_path)
    change_config(tmp_path, rope_theta=900.0, rope_scaling={"rope_type": "linear", "factor": 2.0})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = model(ids()[None]).logits[0]
    config, _ = read_config(tmp_path)
    assert config.rope_scaling is not None
    assert config.rope_scaling.kind == "linear"
    assert (logits(load_decoder(tmp_path), ids()) - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_checkpoints_compute_as_transformers_does(dtype: torch.dtype, tmp_path: Path) -> None:
    import transformers

    oracle("llama-3").to(dtype).save_pretrained(tmp_path)

    def peer(compute: torch.dtype) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=compute).eval()
        with torch.no_grad():
            return model(ids()[None]).logits[0].float()

    wanted = peer(torch.float32)
    assert (logits(load_decoder(tmp_path, base="fp32"), ids()) - wanted).abs().max() <= 1e-6
    ours = load_decoder(tmp_path)
    assert (ours.compute_dtype, ours.embedding.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (logits(ours, ids()) - wanted).norm() <= 2 * (peer(torch.bfloat16) - wanted).norm()
