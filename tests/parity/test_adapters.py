"""Adapters go both ways between whippet and peft, and what is not supported is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import logits, oracle
from safetensors.torch import load_file, save_file

from whippet import lora
from whippet.errors import ModelError, UsageError
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions
from whippet.weights.adapter import CONFIG, WEIGHTS, load_adapter, read_adapter_config, save_adapter
from whippet.weights.load import load_decoder

IDS = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    oracle("llama-3").save_pretrained(folder)
    return folder


def adapted(base: Path, options: LoraOptions) -> Decoder:
    decoder = load_decoder(base)
    lora.attach(decoder, options, seed=0)
    torch.manual_seed(5)
    for name, parameter in lora.adapter_parameters(decoder).items():
        if name.endswith(".b"):
            torch.nn.init.normal_(parameter, std=0.1)
    return decoder


OPTIONS = [
    LoraOptions(r=4, alpha=8),
    LoraOptions(r=5, alpha=3.5, dropout=0.1, rslora=True, targets=("q_proj", "down_proj")),
    LoraOptions(r=2, targets=("k_proj",)),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"r{options.r}")
def test_peft_reads_ours(options: LoraOptions, base: Path, tmp_path: Path) -> None:
    import peft
    import transformers

    decoder = adapted(base, options)
    save_adapter(decoder, options, tmp_path, str(base))
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS}
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path).eval()
    with torch.no_grad():
        wanted = model(IDS[None]).logits[0]
    assert (logits(decoder, IDS) - wanted).abs().max() <= 1e-5
    plain = logits(load_decoder(base), IDS)
    assert (plain - wanted).abs().max() > 1e-2
    with lora.disabled(decoder):
        assert torch.equal(logits(decoder, IDS), plain)
    assert (logits(decoder, IDS) - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"r{options.r}")
def test_ours_reads_ours(options: LoraOptions, base: Path, tmp_path: Path) -> None:
    decoder = adapted(base, options)
    save_adapter(decoder, options, tmp_path, "some/base", revision="v2")
    assert read_adapter_config(tmp_path) == (options, "some/base")
    again = load_decoder(base)
    assert load_adapter(again, tmp_path) == options
    assert torch.equal(logits(decoder, IDS), logits(again, IDS))


@pytest.mark.parametrize(
    "options",
    [{"r": 3}, {"r": 8, "use_rslora": True, "target_modules": ["v_proj", "up_proj"]}, {"target_modules": "all-linear"}],
    ids=str,
)
def test_ours_reads_peft(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    import peft
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    wanted_targets = {"target_modules": ["q_proj", "o_proj", "gate_proj"]} | options
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **wanted_targets)
    model = peft.get_peft_model(model, config).eval()
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(raw | {"a_key_of_a_newer_version": {"x": 1}}))
    with torch.no_grad():
        wanted = model(IDS[None]).logits[0]
    decoder = load_decoder(base)
    load_adapter(decoder, tmp_path)
    assert (logits(decoder, IDS) - wanted).abs().max() <= 1e-5


def test_a_merged_checkpoint_equals_the_adapter(base: Path, tmp_path: Path) -> None:
    from whippet.weights.hf import write_checkpoint
    from whippet.weights.merge import merged_tensors

    decoder = adapted(base, OPTIONS[0])
    write_checkpoint(tmp_path, merged_tensors(decoder))
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    assert (logits(load_decoder(tmp_path), IDS) - logits(decoder, IDS)).abs().max() <= 5e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": "4"}, "r is '4'"),
        ({"r": True}, "must be a number"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"r": 8}, "wanted floats"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    change: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    save_adapter(adapted(base, OPTIONS[0]), OPTIONS[0], tmp_path, "x")
    raw = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(raw | change))
    with pytest.raises(ModelError, match=words):
        load_adapter(load_decoder(base), tmp_path)


def test_tensors_must_fit(base: Path, tmp_path: Path) -> None:
    save_adapter(adapted(base, OPTIONS[0]), OPTIONS[0], tmp_path, "x")
    tensors = load_file(tmp_path / WEIGHTS)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="is missing"):
        load_adapter(load_decoder(base), tmp_path)
    deeper = name.replace("layers.0", "layers.7")
    save_file(tensors | {deeper: tensors[name].clone()}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="has no place"):
        load_adapter(load_decoder(base), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="pickle"):
        load_adapter(load_decoder(base), tmp_path)


def test_an_adapter_is_attached_once(base: Path) -> None:
    decoder = adapted(base, OPTIONS[0])
    with pytest.raises(UsageError, match="has an adapter already"):
        lora.attach(decoder, OPTIONS[0], seed=0)
