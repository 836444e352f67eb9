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


UNEVEN: dict[str, Any] = {
    "r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "down_proj", "v_proj"],
    "rank_pattern": {"down_proj": 6, r"layers\.0\.self_attn\.q_proj": 2, "proj": 7},
    "alpha_pattern": {"q_proj|v_proj": 11, "layers.1.mlp.down_proj": 2.5, "own_proj": 100, "down_proj": 9},
}  # fmt: skip
FOREIGN: dict[str, dict[str, Any]] = {
    "patterns": UNEVEN,
    "one layer": {"r": 4, "target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]},
    "a layer by its pattern": {
        "r": 4, "target_modules": ["o_proj"], "layers_to_transform": 0, "layers_pattern": "layers",
    },
    "a regular expression": {"r": 4, "target_modules": r"model\.layers\.[01]\.(self_attn|mlp)\.(q|up|gate)_proj"},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"]},
    "dora, uneven": UNEVEN | {"use_dora": True},
    "whole modules": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "a norm": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["model.norm", "input_layernorm"]},
    "all of it": UNEVEN | {"use_dora": True, "modules_to_save": ["embed_tokens", "norm"]},
}  # fmt: skip


def foreign(base: Path, options: dict[str, Any], folder: Path) -> torch.Tensor:
    """An adapter that peft made and saved, with random numbers all over; its logits by peft's own forward once peft has
    read it again (it sorts patterns when it saves, and the first that matches counts)."""
    import peft
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        return torch.as_tensor(again(IDS[None]).logits[0])


@pytest.mark.parametrize("kind", FOREIGN)
def test_adapters_of_others(kind: str, base: Path, tmp_path: Path) -> None:
    """Read as peft computes them, switched off, merged, and written again so that peft reads the same."""
    import peft
    import transformers

    from whippet.weights.hf import write_checkpoint
    from whippet.weights.merge import merged_tensors

    wanted = foreign(base, FOREIGN[kind], tmp_path / "theirs")
    decoder = load_decoder(base)
    plain = logits(decoder, IDS)
    options = load_adapter(decoder, tmp_path / "theirs")
    assert (logits(decoder, IDS) - wanted).abs().max() <= 1e-5
    assert (plain - wanted).abs().max() > 1e-2
    with lora.disabled(decoder):
        assert torch.equal(logits(decoder, IDS), plain)
    assert (logits(decoder, IDS) - wanted).abs().max() <= 1e-5
    notes = save_adapter(decoder, options, tmp_path / "ours", str(base))
    assert ["modules_to_save" in " ".join(notes), "use_dora" in " ".join(notes)] == [
        bool(FOREIGN[kind].get(key)) for key in ("modules_to_save", "use_dora")
    ]
    theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        again = peft.PeftModel.from_pretrained(model, tmp_path / "ours").eval()(IDS[None]).logits[0]
    assert (again - wanted).abs().max() <= 1e-5
    write_checkpoint(tmp_path, merged_tensors(decoder))
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    assert (logits(load_decoder(tmp_path), IDS) - wanted).abs().max() <= 2e-5


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_tied_matrices_part_where_one_is_replaced(options: dict[str, Any], tmp_path: Path) -> None:
    from whippet.weights.merge import merged_tensors

    base = tmp_path / "base"
    oracle("tied").save_pretrained(base)
    wanted = foreign(base, {"r": 2, "target_modules": ["q_proj"]} | options, tmp_path / "theirs")
    decoder = load_decoder(base)
    plain = logits(decoder, IDS)
    load_adapter(decoder, tmp_path / "theirs")
    assert (logits(decoder, IDS) - wanted).abs().max() <= 1e-5
    tied = "ensure_weight_tying" in options
    assert decoder.config.tie_embeddings is tied
    assert ("lm_head.weight" in dict(merged_tensors(decoder))) is not tied
    with lora.disabled(decoder):
        assert torch.equal(logits(decoder, IDS), plain) and decoder.config.tie_embeddings


@pytest.mark.parametrize("held", ["nf4", "fp8"])
def test_dora_over_a_quantised_base_scales_what_the_codes_are_multiplied_with(held: Any, tmp_path: Path) -> None:
    from whippet.model.projection import Projection

    base = tmp_path / "base"
    oracle("llama-3").save_pretrained(base)
    foreign(base, FOREIGN["dora"], tmp_path / "theirs")
    decoder = load_decoder(base, base=held, compute="fp32")
    before = {name: projection.weight_fp32() for name, projection in decoder.projections()}
    load_adapter(decoder, tmp_path / "theirs")
    magnitudes = load_file(tmp_path / "theirs" / WEIGHTS)
    for name, projection in decoder.projections():
        assert isinstance(projection, Projection) and projection.quantised is not None
        after = lora.merged_weight(projection)
        for part, adapter in projection.adapter_items():
            rows, index = projection.parts[part], name.split(".")[1]
            home = "self_attn" if part[0] in "qkv" else "mlp"
            wanted = magnitudes[f"base_model.model.model.layers.{index}.{home}.{part}.lora_magnitude_vector"]
            assert (after[rows].norm(dim=1) / wanted - 1).abs().max() <= 1e-5, name
            b = lora.overlay(decoder).magnitudes[f"layers.{index}.{part}"].b_nr
            along = before[name][rows] + adapter.scale * (b @ adapter.a)
            assert (torch.cosine_similarity(after[rows], along, dim=1) - 1).abs().max() <= 1e-5, name


def test_low_rank_adapters_of_the_embedding_are_refused(base: Path, tmp_path: Path) -> None:
    for target, said in (("embed_tokens", "adapts an embedding"), ("lm_head", "adapts the output matrix")):
        foreign(base, {"r": 2, "target_modules": ["q_proj", target]}, tmp_path / target)
        with pytest.raises(ModelError, match=said):
            load_adapter(load_decoder(base), tmp_path / target)


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
        ({"use_dora": True}, "lora_magnitude_vector' is missing"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is lm_head, and must be a list"),
        ({"rank_pattern": {"q_proj": 8}}, r"q_proj.lora_A.weight is F32 \[4, 64\]; wanted floats \[8, 64\]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj is '0'"),
        ({"alpha_pattern": {"(.*a)*b": 8}}, "could take long to match"),
        ({"alpha_pattern": {"[a-z]+[a-z]+[a-z]+": 8}}, "could take long to match"),
        ({"alpha_pattern": {"q_proj(": 8}}, "which is no regular expression"),
        ({"alpha_pattern": [8]}, "alpha_pattern is .8., and must be a table"),
        ({"layers_to_transform": [0]}, r"layers\.1\.mlp\.down_proj is adapted here, and target_modules"),
        ({"layers_to_transform": "0"}, "must be a list of numbers"),
        ({"target_modules": ["q_proj"]}, r"down_proj is adapted here, and target_modules"),
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
