"""The model card: metadata that the hub accepts, facts that are there, nothing of the machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_runs import records
from huggingface_hub import ModelCard

from whippet.options import DataOptions, LoraOptions, ModelOptions, Recipe, Source, TrainOptions
from whippet.recipe import write_recipe
from whippet.report.card import CardFacts, model_card
from whippet.report.folder import RunFacts, is_hub_id, public_name, read_run
from whippet.report.licences import Licence


@pytest.fixture
def run(tmp_path: Path) -> RunFacts:
    folder = tmp_path / "my-run"
    folder.mkdir()
    recipe = Recipe(
        model=ModelOptions(path="meta-llama/Llama-3.1-8B", base="nf4"),
        lora=LoraOptions(r=32, targets=("q_proj", "v_proj")),
        data=DataOptions(
            sources=(Source("/home/somebody/secret-place/pets.jsonl", weight=0.5), Source("org/hub-data"))
        ),
        train=TrainOptions(max_steps=40, learning_rate=2e-4),
        out="/home/somebody/runs/my-run",
    )
    write_recipe(recipe, folder / "recipe.toml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    (folder / "data.json").write_text(
        json.dumps(
            {
                "format": "alpaca", "kept": 1200, "report": "/home/somebody/x",
                "sources": [{"path": "/home/somebody/secret-place/pets.jsonl", "sha256": "ab" * 32}],
            }
        )
    )  # fmt: skip
    (folder / "environment.json").write_text(
        json.dumps({"whippet": "0.1.0", "torch": "2.13.0", "device": "NVIDIA H100", "executable": "/usr/bin/python"})
    )
    (folder / "samples.jsonl").write_text(
        json.dumps({"step": 40, "prompt": "Who | are\nyou?", "text": "<b>[me](javascript:x)</b>"}) + "\n"
    )
    return read_run(folder)


@pytest.fixture
def facts(run: RunFacts) -> CardFacts:
    return CardFacts("my-run", "meta-llama/Llama-3.1-8B", "adapter", run, license=Licence("llama3.1"), curve="loss.png")


def test_the_hub_reads_its_metadata(facts: CardFacts) -> None:
    data = ModelCard(model_card(facts)).data
    assert data.base_model == "meta-llama/Llama-3.1-8B" and data.to_dict()["base_model_relation"] == "adapter"
    assert data.library_name == "peft" and data.pipeline_tag == "text-generation" and data.license == "llama3.1"
    assert data.datasets == ["org/hub-data"] and {"whippet", "lora"} <= set(data.tags or [])
    whole = ModelCard(model_card(dataclasses.replace(facts, relation="finetune", license=None))).data
    assert whole.library_name == "transformers" and whole.license is None
    assert whole.to_dict()["base_model_relation"] == "finetune"


def test_what_the_base_names_is_passed_on(facts: CardFacts) -> None:
    data = ModelCard(model_card(dataclasses.replace(facts, languages=("en", "no")))).data
    assert data.language == ["en", "no"] and data.to_dict()["license_name"] == "llama3.1"
    assert data.to_dict()["license_link"] == "https://www.llama.com/llama3_1/license"
    other = Licence("other", "qwen-research", "https://example.org/LICENSE")
    told = ModelCard(model_card(dataclasses.replace(facts, license=other))).data.to_dict()
    assert (told["license"], told["license_name"], told["license_link"]) == ("other", other.name, other.link)


def test_no_key_of_the_metadata_is_empty(facts: CardFacts) -> None:
    card = model_card(CardFacts("plain", "org/base", "quantized", chat=False))
    assert yaml.safe_load(card.split("---")[1]) == {
        "base_model": "org/base", "base_model_relation": "quantized", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["whippet"],
    }  # fmt: skip


def test_it_tells_data_recipe_results_cost_and_versions(facts: CardFacts) -> None:
    card = model_card(facts)
    for text in (
        "# Llama-my-run", "`meta-llama/Llama-3.1-8B`",
        "| pets.jsonl | 0.5 | abababababababab |", "| org/hub-data | 1 |",
        "| kept | 1,200 |", "| lora.r | 32 |", "| lora.targets | q_proj, v_proj |", "| train.learning_rate | 2e-4 |",
        "**1.1856**, from 3.5000 before training", "| held-out loss | 3.5 | 1.186 |",
        "![The loss over the steps](loss.png)",
        "| peak device memory | 3 GiB |", "| tokens per second | 8,192 |", "| torch | 2.13.0 |",
        "| device | NVIDIA H100 |",
        "## Intended use\n\nNot stated yet.",
        "PeftModel.from_pretrained", "whippet chat meta-llama/Llama-3.1-8B --adapter .", "## Limitations",
    ):  # fmt: skip
        assert text in card, text


def test_it_tells_nothing_of_the_machine(facts: CardFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, f"planted-{name}")
    card = model_card(facts)
    for secret in ("/home", "somebody", "secret-place", "planted", "/usr"):
        assert secret not in card, secret


def test_nothing_from_outside_becomes_markup(facts: CardFacts) -> None:
    card = model_card(dataclasses.replace(facts, name="x](y) <script>|# `\n---\nlicense: mit"))
    assert "<script>" not in card and "<b>" not in card and "[me](" not in card
    assert "\\<b\\>\\[me\\](javascript:x)\\</b\\>" in card
    assert ModelCard(card).data.license == "llama3.1"


def test_every_table_row_has_as_many_cells_as_its_head(facts: CardFacts) -> None:
    lines = model_card(facts).splitlines()
    widths: list[int] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("| "):
            cells = line.replace("\\|", "").count("|")
            if not before.startswith("| "):
                widths.append(cells)
            assert cells == widths[-1], line
    assert len(widths) >= 6


def test_a_local_base_is_no_hub_id_and_only_its_name_is_told(facts: CardFacts, tmp_path: Path) -> None:
    card = model_card(dataclasses.replace(facts, base=str(tmp_path / "private" / "tiny")))
    assert "base_model" not in card and "`tiny`" in card and str(tmp_path) not in card
    assert "--adapter ." in card and "BASE is the folder of tiny" in card


def test_a_checkpoint_without_a_run_or_template(facts: CardFacts) -> None:
    card = model_card(CardFacts("plain", "org/base", "finetune", chat=False))
    assert ModelCard(card).data.base_model == "org/base"
    assert "apply_chat_template" not in card and "whippet generate . --prompt" in card and "## Recipe" not in card


@pytest.mark.parametrize("passed", [True, False])
def test_the_verdict_of_an_export_is_on_it(facts: CardFacts, passed: bool) -> None:
    export: dict[str, Any] = {
        "passed": passed, "dtype": "bf16", "mean_kl": 2e-5, "bound_mean_kl": 1e-3, "greedy_agreement": 0.995,
        "bases_distance": 0.09, "merged_onto": "trained", "positions": 500, "parameters": 8_030_000_000,
    }  # fmt: skip
    card = model_card(dataclasses.replace(facts, export=export))
    assert ("do not rely on it" in card) is not passed
    for text in ("| mean KL to the live model, nats | 2e-5 |", "99.5 %", "8.03 B", "9.0 %"):
        assert text in card, text


def test_public_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert is_hub_id("org/name") and not is_hub_id("models/tiny") and not is_hub_id("data/pets.jsonl")
    assert [public_name(name) for name in ("org/name", "models/tiny", "/a/b/c.json", "C:\\a\\b.json", "./x/")] == [
        "org/name", "tiny", "c.json", "b.json", "x",
    ]  # fmt: skip
