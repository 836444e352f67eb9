"""What a finished run leaves: ``adapter/`` or ``model/``, the curve, the page and the cards.

Comes in: the trained model and the run's folder. Goes out: files, each whole or absent; writing them again changes
nothing, so a run that was killed here finishes when it is started again.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import tokenizers
import torch

from whippet import __version__
from whippet.infer.model import Model
from whippet.model.families import config_to_hf
from whippet.options import Recipe
from whippet.report.card import CardFacts, model_card
from whippet.report.folder import read_run
from whippet.report.licences import carry_licence, languages_of, license_of
from whippet.report.page import write_page
from whippet.report.plot import loss_png
from whippet.weights.adapter import adapter_notes, save_adapter
from whippet.weights.files import read_json, sync_folder, write_json
from whippet.weights.hf import write_checkpoint
from whippet.weights.merge import merged_tensors

ADAPTER, MODEL, CURVE, PAGE, CARD = "adapter", "model", "loss.png", "report.html", "README.md"
ENVIRONMENT = "environment.json"


def write_result(model: Model, recipe: Recipe, base_folder: Path, folder: Path) -> Path:
    """``adapter/`` in PEFT's layout, or after full fine-tuning ``model/``, an fp32 checkpoint; returns its path."""
    full = recipe.train.method == "full"

    def write(aside: Path) -> None:
        if full:
            write_checkpoint(aside, merged_tensors(model.decoder))
            _write_configs(model, base_folder, aside, recipe.model.pad_token)
        else:
            save_adapter(model.decoder, recipe.lora, aside, recipe.model.path, revision=recipe.model.revision)
        template = model.renderer.template
        source = template.source if template is not None else None
        told = model.renderer.variables
        model.tokenizer.save(aside, chat_template=source, pad_token=recipe.model.pad_token, variables=told)

    return _whole(folder / (MODEL if full else ADAPTER), write)


def write_reports(model: Model, recipe: Recipe, base_folder: Path, folder: Path) -> None:
    """The curve, the page, and a card beside the run and beside what it made."""
    full = recipe.train.method == "full"
    result = folder / (MODEL if full else ADAPTER)
    loss_png(read_run(folder).records, folder / CURVE, title=folder.name)
    run, notes = read_run(folder), result_notes(result)
    licence, languages = license_of(base_folder, recipe.model.path), languages_of(base_folder)
    carry_licence(base_folder, licence, result)
    for place, curve in ((folder, CURVE), (result, None)):
        facts = CardFacts(
            name=folder.name,
            base=recipe.model.path,
            relation="finetune" if full else "adapter",
            run=run,
            chat=model.has_template,
            license=licence,
            languages=languages,
            curve=curve,
            notes=notes if place == result else (),
        )
        (place / CARD).write_text(model_card(facts), encoding="utf-8")
    write_page(read_run(folder), folder / PAGE)


def result_notes(result: Path) -> tuple[str, ...]:
    """What other programs will not like about what was trained."""
    return tuple(adapter_notes(result)) if result.name == ADAPTER else ()


def environment(device: torch.device) -> dict[str, Any]:
    """What a run was made with; nothing of who made it or where."""
    return {
        "whippet": __version__,
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
    }


def _write_configs(model: Model, base_folder: Path, folder: Path, pad_token: str | None) -> None:
    """config.json and generation_config.json, with the ids that the tokenizer and the template end with."""
    tokenizer = model.tokenizer
    stops = sorted(model.renderer.stop_ids)
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": tokenizer.pad_id if pad_token is None else tokenizer.token_id(pad_token),
    }
    special = {key: value for key, value in ids.items() if value is not None}
    before = base_folder / "generation_config.json"
    drawing = read_json(before) if before.is_file() else {}
    write_json(folder / "config.json", config_to_hf(model.decoder.config, dtype="float32", extra=special))
    write_json(folder / "generation_config.json", drawing | special)


def _whole(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a folder aside, then put it in the place of ``folder``. After a failure nothing is aside."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        write(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    sync_folder(folder.parent)
    return folder
