"""The plan: what a run will take, before it takes it.

Comes in: the model's config, the recipe, what is known of the data, and what the device has free. Goes out: ``Plan``,
which prints itself in 80 columns and is ``plan.json``: memory, micro-batches, steps, disk and time. It is predicted
from shapes alone, so that ``whippet plan`` loads no weights.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from whippet.errors import UsageError
from whippet.infer.dense import free_bytes
from whippet.kernels.attention import backend
from whippet.model.config import ModelConfig
from whippet.model.size import layer_matrix_parameters, optimizer_bytes, parameters
from whippet.options import Recipe
from whippet.report.figures import count, duration, percent, size
from whippet.train import checkpoint, speed
from whippet.train.choose import choose_limits
from whippet.train.limits import Limits
from whippet.train.memory import Workload, fixed_bytes, parked_bytes, peak_bytes, weights_bytes

GPU_SHARE, CPU_SHARE = 0.92, 0.8
"""Of what is free, for ``memory.budget = "auto"``: the rest is for other programs and for what is not counted."""
RUNTIME_BYTES = 500 * 2**20
"""Python, torch and its libraries in the host's memory."""
REPORT_BYTES = 2 * 2**20
LINE_BYTES = 400
"""Of ``metrics.jsonl``, a step."""
LAYER_SECONDS = {"cuda": 1.2e-3, "cpu": 1.0e-3}
"""Time of a layer's forward and backward pass that no product accounts for, a micro-batch."""
STORE_BYTES_PER_TOKEN = 5
FEWEST_TOKENS, MOST_TOKENS, STEPS_AIMED_AT = 1024, 16384, 100


@dataclass(frozen=True)
class DataFacts:
    """What the plan needs to know of the training examples."""

    num_examples: int
    num_tokens: int
    """In one epoch."""
    num_trained: int
    longest: int
    """Tokens of the longest example."""


@dataclass(frozen=True)
class Plan:
    """What a run will take. Bytes and seconds are predictions."""

    family: str
    base: str
    compute: str
    device: str
    attention: str
    """Who computes attention (``kernels/attention.py``)."""
    num_parameters: int
    num_trained: int
    method: str
    examples: DataFacts
    tokens_per_step: int
    steps: int
    epochs: float
    limits: Limits
    num_layers: int
    budget_bytes: int
    peak_bytes: int
    weights_bytes: int
    fixed_bytes: int
    host_bytes: int
    checkpoint_bytes: int
    kept: int
    disk_bytes: int
    disk_free_bytes: int
    flops_per_step: float
    step_seconds: float

    @property
    def seconds(self) -> float:
        """Of all steps together."""
        return self.steps * self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """For ``plan.json`` and ``--json``."""
        return asdict(self) | {"seconds": self.seconds}

    def __str__(self) -> str:
        return "\n".join(f"{name:<8}{text}" for name, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        data, limits = self.examples, self.limits
        share = percent(self.num_trained / self.num_parameters)
        how = "every weight" if self.method == "full" else f"an adapter of {count(self.num_trained)} ({share})"
        yield "model", f"{self.family}, {count(self.num_parameters)} parameters, {self.base}, compute {self.compute}"
        yield "", f"on {self.device} with {self.attention}; trains {how}"
        yield "data", f"{data.num_examples:,} examples, {data.num_tokens:,} tokens an epoch, "
        yield "", f"{percent(data.num_trained / data.num_tokens)} trained; the longest has {data.longest:,} tokens"
        yield "steps", f"{self.steps:,} of about {self.tokens_per_step:,} tokens ({self.epochs:.3g} epochs)"
        yield "memory", f"peak {size(self.peak_bytes)} of {size(self.budget_bytes)}; weights {size(self.weights_bytes)}"
        again = f"{limits.recompute} of {self.num_layers} layers recomputed,"
        yield "", f"micro-batches of {limits.micro_tokens:,} tokens, {again}"
        ways = [f"{limits.halves} of them by halves"] if limits.halves else []
        ways += [f"{limits.park} parked"] if limits.park else []
        ways += [f"{limits.entire} entire"] if limits.entire else []
        ways += [f"by tiles of {limits.tile:,} tokens"] if limits.tile else []
        if ways:
            yield "", f"{', '.join(ways)},"
        yield "", f"loss in chunks of {limits.chunk_rows:,} rows; host memory {size(self.host_bytes)}"
        yield (
            "disk",
            f"{size(self.disk_bytes)} of {size(self.disk_free_bytes)} free ({self.kept} checkpoints kept, each",
        )
        yield "", f"{size(self.checkpoint_bytes)})"
        yield "time", f"about {duration(self.seconds)} ({duration(self.step_seconds)} a step)"


def choose_tokens_per_step(recipe: Recipe, data: DataFacts) -> int:
    """The recipe's, or a power of two that gives about a hundred steps an epoch, from 1,024 to 16,384 tokens."""
    if recipe.train.tokens_per_step:
        return recipe.train.tokens_per_step
    wanted = max(1, data.num_tokens // STEPS_AIMED_AT)
    return min(MOST_TOKENS, max(FEWEST_TOKENS, 2 ** int(math.log2(wanted))))


def budget_bytes(budget: int | None, device: torch.device) -> int:
    """Bytes that training may take on ``device``: ``budget``, or what is free less a margin."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if budget is not None and budget > total:
            raise UsageError(f"memory.budget is {size(budget)}, and {device} has {size(total)}")
        return budget if budget is not None else int(GPU_SHARE * free)
    return budget if budget is not None else int(CPU_SHARE * free_bytes())


def make_plan(
    recipe: Recipe,
    config: ModelConfig,
    data: DataFacts,
    *,
    steps: int,
    tokens_per_step: int,
    budget: int,
    device: torch.device,
    compute: torch.dtype,
    out: Path,
    tokenizer_bytes: int = 0,
) -> Plan:
    """Choose micro-batches and recomputation within ``budget`` bytes and predict the rest. ``tokenizer_bytes``: of the
    tokenizer's files, which lie beside what was trained.

    ``recipe.model.base`` must be resolved. Raises UsageError if nothing fits, naming what would.
    """
    lora = recipe.lora if recipe.train.method == "lora" else None
    attention = backend(device, compute, config.head_dim, config.attention_softcap is not None)
    work = Workload(
        config=config,
        base=recipe.model.base,
        item=compute.itemsize,
        lora=lora,
        optimizer=recipe.train.optimizer,
        device=device.type,
        longest=data.longest,
        tokens_per_step=tokens_per_step,
        supervised=data.num_trained / data.num_tokens,
        fp8=recipe.model.compute == "fp8",
        by_blocks=attention == "sdpa" and config.attention_softcap is not None,
    )
    limits = choose_limits(work, budget)
    peak = peak_bytes(work, limits)
    tokens = min(tokens_per_step, data.num_tokens)
    length = round(data.num_tokens / data.num_examples)
    flops = work.operations_per_token(limits, length) * tokens
    busy = work.time_per_token(limits, length) * tokens / speed.expected_flops(device, compute)
    micro = math.ceil(tokens / limits.micro_tokens)
    idle = micro * config.num_layers * LAYER_SECONDS[device.type]
    saved = 4 * work.trained + optimizer_bytes(work.trained, work.optimizer) + checkpoint.SIDE_BYTES
    matrix = 4 * max(config.vocab_size * config.hidden_size, layer_matrix_parameters(config))
    host = RUNTIME_BYTES + STORE_BYTES_PER_TOKEN * data.num_tokens + matrix + parked_bytes(work, limits)
    host += peak if device.type == "cpu" else 0
    return Plan(
        family=config.family,
        base=recipe.model.base,
        compute="fp8" if recipe.model.compute == "fp8" else str(compute).removeprefix("torch."),
        device=str(device),
        attention=attention,
        num_parameters=parameters(config),
        num_trained=work.trained,
        method=recipe.train.method,
        examples=data,
        tokens_per_step=tokens_per_step,
        steps=steps,
        epochs=steps * tokens_per_step / data.num_tokens,
        limits=limits,
        num_layers=config.num_layers,
        budget_bytes=budget,
        peak_bytes=peak,
        weights_bytes=weights_bytes(work),
        fixed_bytes=fixed_bytes(work),
        host_bytes=host,
        checkpoint_bytes=saved,
        kept=recipe.train.keep,
        # One more checkpoint than is kept, while a new one is written; and what the run leaves, which is there twice
        # for a moment when a finished run was gone on with.
        disk_bytes=(recipe.train.keep + 1) * saved
        + 4 * work.trained
        + 2 * tokenizer_bytes
        + LINE_BYTES * steps
        + REPORT_BYTES,
        disk_free_bytes=shutil.disk_usage(existing(out)).free,
        flops_per_step=flops,
        step_seconds=busy + idle,
    )


def existing(folder: Path) -> Path:
    """``folder`` or the nearest folder above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
