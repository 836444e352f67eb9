"""``model.base = "auto"`` holds what a quantised checkpoint has, and nothing is quantised a second time in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers_train import settings, write_records

from whippet.errors import ModelError
from whippet.recipe import make_recipe
from whippet.train.material import gather, settle
from whippet.weights.bnb_write import quantised_tensors, quantization_config
from whippet.weights.hf import write_checkpoint
from whippet.weights.load import load_decoder


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4), ("int8", 8)])
def test_a_quantised_checkpoint_is_trained_over_as_it_is(
    kind: str, bits: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    decoder = load_decoder(tiny_checkpoint, base=kind, device="cpu")  # type: ignore[arg-type]
    write_checkpoint(folder, quantised_tensors(decoder, torch.float32))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization_config(decoder, torch.float32)
    (folder / "config.json").write_text(json.dumps(config))
    data = write_records(tmp_path / "chats.jsonl")
    tables = settings() | {"model": {"path": str(folder), "device": "cpu"}, "data": {"sources": [str(data)]}}
    settled = settle(
        make_recipe(None, {f"{t}.{k}": v for t, keys in tables.items() for k, v in keys.items()}, where="t")
    )
    assert settled.model.base == kind
    assert gather(settled, None).plan.base == kind
    for other in {"nf4", "int8", "bf16"} - {kind}:
        tables["model"]["base"] = other
        flat = {f"{t}.{k}": v for t, keys in tables.items() for k, v in keys.items()}
        with pytest.raises(ModelError, match=f'checkpoint is {bits} bit; wanted model.base = "{kind}", not "{other}"'):
            gather(settle(make_recipe(None, flat, where="t")), None)
