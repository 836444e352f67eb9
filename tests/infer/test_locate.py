"""MODEL is a checkpoint, a run or an adapter; each is found, and what is none of them is said to be none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import whippet
from whippet import lora
from whippet.errors import ModelError, UsageError
from whippet.infer.locate import Located, locate
from whippet.options import LoraOptions
from whippet.weights.adapter import save_adapter
from whippet.weights.load import load_decoder


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the tiny checkpoint says."""
    import torch

    folder = tmp_path_factory.mktemp("adapter")
    decoder = load_decoder(checkpoint, base="fp32", device="cpu")
    options = LoraOptions(r=4, alpha=8)
    lora.attach(decoder, options, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in lora.adapter_parameters(decoder).items():
            if name.endswith(".b"):
                parameter.normal_(0, 0.2, generator=generator)
    save_adapter(decoder, options, folder, str(checkpoint))
    return folder


def make_run(folder: Path, base: Path, adapter: Path | None, recipe: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(f"[model]\npath = {json.dumps(str(base))}\n{recipe}")
    if adapter is not None:
        (folder / "adapter").symlink_to(adapter)
    return folder


def test_a_checkpoint_and_a_hub_id(checkpoint: Path) -> None:
    assert locate(checkpoint) == Located(str(checkpoint), "main")
    assert locate("org/name", revision="v1") == Located("org/name", "v1")


def test_a_run(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", checkpoint, adapter, 'base = "bf16"\nrevision = "v2"\n[data]\ntemplate = "zephyr"\n'
    )
    assert locate(run) == Located(str(checkpoint), "v2", run / "adapter", "bf16", "zephyr")
    auto = make_run(tmp_path / "auto", checkpoint, adapter, 'base = "auto"\n')
    assert locate(auto).stored_as == "nf4"


def test_an_adapter(checkpoint: Path, adapter: Path) -> None:
    assert locate(adapter) == Located(str(checkpoint), "main", adapter)
    assert locate(checkpoint, adapter=adapter) == Located(str(checkpoint), "main", adapter)


def test_all_ways_to_an_adapter_say_the_same(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", checkpoint, adapter, 'base = "fp32"\n')
    ways = [
        whippet.load(run, device="cpu"),
        whippet.load(adapter, base="fp32", device="cpu"),
        whippet.load(checkpoint, base="fp32", device="cpu", adapter=adapter),
    ]
    base = whippet.load(checkpoint, base="fp32", device="cpu").generate("the quick", max_new_tokens=15)
    tuned = {model.generate("the quick", max_new_tokens=15) for model in ways}
    assert len(tuned) == 1 and base not in tuned
    assert all(model.has_adapter for model in ways)
    with ways[0].base():
        assert ways[0].generate("the quick", max_new_tokens=15) == base
    assert "an adapter over" in ways[0].about


def test_a_run_of_full_fine_tuning(checkpoint: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path / "elsewhere", None)
    (run / "model").symlink_to(checkpoint)
    assert locate(run) == Located(str(run / "model"), "main")


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({}, UsageError, "is no model: it has neither config.json"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, UsageError, "Meta's original layout; run: whippet convert"),
        ({"recipe.toml": '[model]\npath = "x"\n'}, UsageError, "its run has not finished"),
        ({"recipe.toml": "[model"}, ModelError, "not a TOML recipe"),
        ({"recipe.toml": "model = 3"}, ModelError, r"\[model\] is 3, wanted a table"),
        ({"recipe.toml": "[model]", "adapter/adapter_config.json": "{}"}, ModelError, "model.path is missing"),
        ({"recipe.toml": '[model]\npath = "x"\nbase = "int3"', "adapter/adapter_config.json": "{}"}, ModelError,
         "model.base is 'int3', wanted one of"),
        ({"adapter_config.json": "{"}, ModelError, "not valid JSON"),
        ({"adapter_config.json": "[]"}, ModelError, "wanted a JSON object"),
        ({"adapter_config.json": "{}"}, ModelError, "names no base_model_name_or_path"),
        ({"adapter_config.json": '{"base_model_name_or_path": 3}'}, ModelError, "is 3, wanted a text"),
    ],
)  # fmt: skip
def test_what_is_no_model(tmp_path: Path, files: dict[str, str], error: type[Exception], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=said):
        locate(tmp_path)


def test_two_adapters_are_one_too_many(adapter: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="has an adapter of its own"):
        locate(adapter, adapter=adapter)
    with pytest.raises(UsageError, match=r"no adapter: it has no adapter_config\.json"):
        locate(checkpoint, adapter=checkpoint)


@pytest.mark.parametrize("name", ["adapter_config.json", "chat_template.jinja", "recipe.toml"])
def test_a_link_out_of_the_folder_is_not_followed(name: str, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "given"
    folder.mkdir()
    secret.write_text('{"base_model_name_or_path": "org/base"}')
    if name == "chat_template.jinja":
        (folder / "adapter_config.json").write_text(secret.read_text())
    (folder / name).symlink_to(secret)
    with pytest.raises(ModelError, match="links out of a folder are not followed"):
        locate(folder)
