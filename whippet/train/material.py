"""Everything before the first weight is read: checkpoint found and its headers, template and data checked, plan made.

Comes in: a recipe. Goes out: ``Material``. Nothing is written, so a fault of model, data or plan leaves no trace.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data.batches import Batches
from whippet.data.prepare import Prepared, prepare
from whippet.data.report import DataReport
from whippet.data.store import ExampleStore
from whippet.data.weigh import Weighed
from whippet.errors import MissingExtra, ModelError, UsageError, WhippetError
from whippet.kernels import fp8
from whippet.model.config import ModelConfig
from whippet.model.size import projection_shapes
from whippet.options import Base, Recipe, Source
from whippet.report.figures import size
from whippet.train.optim import check_optimizer
from whippet.train.plan import DataFacts, Plan, budget_bytes, choose_tokens_per_step, existing, make_plan
from whippet.weights.hf import weights_are_here
from whippet.weights.load import choose_compute, choose_device, held_in, open_checkpoint, read_config, resolve_model

EXTRAS = {"tensorboard": "track", "wandb": "wandb", "trackio": "trackio"}
PROMPTS_LOOKED_AT = 100


@dataclass(frozen=True)
class Material:
    """What training starts from."""

    base_folder: Path
    tokenizer: Tokenizer
    renderer: Renderer
    prepared: Prepared
    batches: Batches
    eval_batches: Batches | None
    plan: Plan
    device: torch.device
    num_ids: int
    """Ids of the checkpoint's own tokenizer; ``tokenizer`` has more where the recipe adds some."""

    @property
    def report(self) -> DataReport:
        """What was found in the data."""
        return self.prepared.report

    def as_dict(self) -> dict[str, Any]:
        """The plan, with the data report under ``data``."""
        return self.plan.as_dict() | {"data": self.report.as_dict()}

    def __str__(self) -> str:
        return f"{self.report}\n\n{self.plan}"

    def data_seal(self) -> str:
        """A checksum of the examples in memory; of a stream, of what was found when it was looked at."""
        examples = self.prepared.train
        if isinstance(examples, ExampleStore):
            seal = hashlib.sha256(json.dumps(examples.shares).encode())
            for values in (examples.ids, examples.weights, examples.offsets, examples.sources):
                seal.update(values.tobytes())
        else:
            seal = hashlib.sha256(json.dumps(self.report.as_dict(), sort_keys=True).encode())
        return seal.hexdigest()

    def first_examples(self) -> Sequence[Weighed]:
        """Some examples to ask about: held-out ones if there are any."""
        held_out, train = self.prepared.eval, self.prepared.train
        store = held_out if len(held_out) or not isinstance(train, ExampleStore) else train
        return [store[index] for index in islice(range(len(store)), PROMPTS_LOOKED_AT)]


def settle(recipe: Recipe) -> Recipe:
    """Fill in what depends on this machine: whole paths, the run's folder, and what ``base = "auto"`` means here."""
    model, data, train = recipe.model, recipe.data, recipe.train
    base = model.base if model.base != "auto" else _base(model.path, train.method)
    out = recipe.out or f"runs/{Path(model.path).name}-{Path(data.sources[0].path).name.partition('.')[0]}"
    template = (
        _whole(data.template) if data.template is not None and data.template.endswith(".jinja") else data.template
    )
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(model, path=_whole(model.path), base=base),
        data=dataclasses.replace(
            data, sources=_sources(data.sources), eval_sources=_sources(data.eval_sources), template=template
        ),
        out=str(Path(out).expanduser().absolute()),
    )


def _base(path: str, method: str) -> Base:
    """What ``base = "auto"`` means for training ``path``, as far as that is known before a hub id is fetched."""
    folder = Path(path).expanduser()
    if method != "lora":
        return "fp32"
    return "int8" if (folder / "config.json").is_file() and held_in(folder) == "int8" else "nf4"


def gather(recipe: Recipe, budget: int | None, *, weights: bool = True) -> Material:
    """Find, check and count everything that ``recipe`` (settled) names; ``budget`` in bytes, None for what is free.

    ``weights=False`` does not fetch those of a hub id, and checks them only if they are here already. Raises
    UsageError, ModelError, DataError or MissingExtra for whatever a run would fail over.
    """
    _check_extras(recipe)
    device = choose_device(recipe.model.device)
    compute = choose_compute(recipe.model.compute, recipe.model.base, device)
    folder = resolve_model(recipe.model.path, recipe.model.revision, weights=weights)
    config, _ = read_config(folder)
    if weights or Path(recipe.model.path).is_dir() or weights_are_here(folder):
        open_checkpoint(folder, config).close()
    for kind, bits in (("nf4", 4), ("int8", 8)):
        if held_in(folder) == kind and recipe.model.base != kind:
            raise ModelError(
                f'{folder}: the checkpoint is {bits} bit; wanted model.base = "{kind}", not "{recipe.model.base}"'
            )
    if "fp8" in (recipe.model.base, recipe.model.compute):
        _check_fp8(recipe, config, device, compute)
    own = Tokenizer.load(folder)
    if own.vocab_size > config.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has {own.vocab_size:,} ids and the model's vocabulary {config.vocab_size:,}"
        )
    # Not special: replies show them, as they do those of models that come with such tokens.
    tokenizer = own.add(recipe.model.add_tokens, special=False) if recipe.model.add_tokens else own
    config = dataclasses.replace(config, vocab_size=max(config.vocab_size, tokenizer.vocab_size))
    tokenizer.check_pad(recipe.model.pad_token)
    renderer = make_renderer(tokenizer, recipe.data.template, recipe.data.template_variables)
    max_length = min(recipe.data.max_length, config.context)
    prepared = prepare(recipe.data, renderer, max_length=max_length, seed=recipe.train.seed)
    prepared.report.notes += _told_of_tokens(recipe, own)
    facts = _facts(prepared, max_length)
    tokens_per_step = choose_tokens_per_step(recipe, facts)
    batches = _batches(prepared.train, recipe, tokens_per_step, max_length, shuffle=recipe.data.shuffle)
    eval_batches = None
    if len(prepared.eval):
        eval_batches = _batches(prepared.eval, recipe, tokens_per_step, max_length, shuffle=False)
    plan = make_plan(
        recipe,
        config,
        facts,
        steps=_steps(recipe, batches),
        tokens_per_step=tokens_per_step,
        budget=budget_bytes(budget, device),
        device=device,
        compute=compute,
        out=Path(recipe.out),
        tokenizer_bytes=tokenizer.num_bytes,
    )
    return Material(folder, tokenizer, renderer, prepared, batches, eval_batches, plan, device, own.vocab_size)


def _told_of_tokens(recipe: Recipe, own: Tokenizer) -> list[str]:
    """Which of the tokens that the recipe adds are new."""
    known = [text for text in recipe.model.add_tokens if own.token_id(text) is not None]
    new = len(recipe.model.add_tokens) - len(known)
    told = [f"{new} tokens added to the vocabulary of {own.vocab_size:,}"] if new else []
    return [*told, *(f"model.add_tokens: {text!r} was there already" for text in known)]


def check_disk(plan: Plan, out: Path) -> None:
    """Raise WhippetError, before anything is written, if the run cannot fit on its disk."""
    if plan.disk_bytes > plan.disk_free_bytes:
        raise WhippetError(
            f"{existing(out)}: the run needs {size(plan.disk_bytes)} ({plan.disk_bytes:,} bytes) on disk and "
            f"{size(plan.disk_free_bytes)} ({plan.disk_free_bytes:,} bytes) are free; make room, choose another --out, "
            "or lower train.keep"
        )


def _facts(prepared: Prepared, max_length: int) -> DataFacts:
    train, report = prepared.train, prepared.report
    if not isinstance(train, ExampleStore):
        return DataFacts(report.train_examples, report.train_tokens, report.trained_tokens, max_length)
    shares = np.asarray(train.shares)[train.sources]
    trained = np.add.reduceat(train.weights > 0, train.offsets[:-1], dtype=np.int64)
    return DataFacts(
        num_examples=round(float(shares.sum())),
        num_tokens=round(float((shares * train.lengths).sum())),
        num_trained=round(float((shares * trained).sum())),
        longest=int(train.lengths.max()),
    )


def _steps(recipe: Recipe, batches: Batches) -> int:
    if recipe.train.max_steps:
        return recipe.train.max_steps
    if recipe.data.streaming:
        raise UsageError("data.streaming: the end of a stream is not known beforehand; set train.max_steps")
    return batches.num_steps(recipe.train.epochs)


def _batches(examples: Any, recipe: Recipe, tokens_per_step: int, max_length: int, *, shuffle: bool) -> Batches:
    return Batches(
        examples,
        tokens_per_step=tokens_per_step,
        max_length=max_length,
        packing=recipe.data.packing,
        shuffle=shuffle,
        seed=recipe.train.seed,
    )


def _check_fp8(recipe: Recipe, config: ModelConfig, device: torch.device, compute: torch.dtype) -> None:
    """Raise UsageError where training with products in FP8 would be no quicker, but much slower."""
    asked = 'model.base = "fp8"' if recipe.model.base == "fp8" else 'model.compute = "fp8"'
    instead = 'use "bf16" or "nf4"' if recipe.model.base == "fp8" else 'use "auto"'
    if not fp8.supported(device):
        raise UsageError(
            f"{asked} needs an NVIDIA GPU of compute capability 9.0 (Hopper) or later, and the device is "
            f"{_told(device)}; {instead}"
        )
    if compute != torch.bfloat16:
        raise UsageError(f'model.base = "fp8" needs model.compute = "bf16", met {str(compute).removeprefix("torch.")}')
    odd = [name for name, shape in projection_shapes(config).items() if any(side % fp8.ALIGNED for side in shape)]
    if odd:
        raise UsageError(
            f"{asked} needs matrices whose sides are multiples of {fp8.ALIGNED}, and {odd[0]} is "
            f"{list(projection_shapes(config)[odd[0]])}; {instead}"
        )


def _told(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} ({major}.{minor})"


def _check_extras(recipe: Recipe) -> None:
    check_optimizer(recipe.train)
    for name in recipe.train.track:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(name, EXTRAS[name], f"train.track = {name!r}")


def _sources(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    return tuple(dataclasses.replace(source, path=_whole(source.path)) for source in sources)


def _whole(path: str) -> str:
    """The absolute path of what exists here; hub ids stay as they are."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path
