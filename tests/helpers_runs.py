"""Finished runs for tests of exports and reports, made without training: random weights, a random adapter, records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from helpers_infer import write_checkpoint

from whippet import lora
from whippet.options import LoraOptions, ModelOptions, Recipe, TrainOptions
from whippet.recipe import write_recipe
from whippet.weights.adapter import save_adapter
from whippet.weights.load import load_decoder


def records(steps: int = 40) -> list[dict[str, Any]]:
    """A loss that falls, evaluated before the first step and every tenth."""
    found: list[dict[str, Any]] = [{"step": 0, "eval_loss": 3.5, "eval_accuracy": 0.1}]
    for step in range(1, steps + 1):
        falling = math.exp(-step / 12)
        found.append(
            {
                "step": step,
                "loss": 2.5 * falling + 1 + 0.1 * math.sin(7 * step),
                "accuracy": 1 - 0.8 * falling,
                "learning_rate": 2e-4 * (1 - step / steps),
                "grad_norm": 1 + falling,
                "tokens": 4096,
                "trained_tokens": 1024,
                "tokens_seen": 4096 * step,
                "time": {"step_s": 0.5, "tokens_per_s": 8192.0, "peak_bytes": 3 * 2**30, "eta_s": (steps - step) / 2},
            }
        )
        if step % 10 == 0:
            found.append({"step": step, "eval_loss": 2.4 * falling + 1.1, "eval_accuracy": 0.9})
    return found


def write_run(
    folder: Path,
    base: Path,
    *,
    held: str = "nf4",
    size: float = 0.1,
    sources: tuple[Any, ...] = (),
    **lora_options: Any,
) -> Path:
    """A run that trained an adapter of random factors of about ``size`` over ``base``."""
    options = LoraOptions(**({"r": 4, "alpha": 8.0} | lora_options))
    folder.mkdir(parents=True)
    recipe = Recipe(model=ModelOptions(path=str(base), base=held), lora=options, train=TrainOptions(max_steps=40))  # type: ignore[arg-type]
    write_recipe(recipe, folder / "recipe.toml")
    decoder = load_decoder(base, base=held, compute="fp32", device="cpu")  # type: ignore[arg-type]
    lora.attach(decoder, options, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in lora.adapter_parameters(decoder).values():
            factor.normal_(0, size, generator=generator)
    save_adapter(decoder, options, folder / "adapter", str(base))
    lines = [json.dumps(record) + "\n" for record in records()]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def tiny_run(folder: Path, **options: Any) -> tuple[Path, Path]:
    """A checkpoint and a run over it."""
    base = write_checkpoint(folder / "base")
    return base, write_run(folder / "run", base, **options)
