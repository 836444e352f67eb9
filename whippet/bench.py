"""``whippet bench``: how fast this machine trains models of real shapes, in how much memory.

Comes in: ``Setting``s, such as "an 8B model in NF4, 2 × 2048 tokens, in 6.8 GiB". Goes out: ``Measured``, one each: the
median step as the loop runs it, the peak of memory beside the planned one. Weights are random and made on the device,
every token is supervised, documents have one length: what other trainers' benchmarks do. Nothing is read from disk.
"""

from __future__ import annotations

import datetime
import gc
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from whippet import __version__, lora
from whippet.data.batches import DataPosition, Step, make_batch
from whippet.data.weigh import Weighed
from whippet.kernels import triton_jit
from whippet.kernels.attention import backend
from whippet.kernels.nf4 import join_rows, quantize_nf4
from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.decoder import Decoder
from whippet.model.projection import Projection
from whippet.options import LoraOptions, TrainOptions
from whippet.recipe import parse_bytes
from whippet.report.figures import size
from whippet.train import speed
from whippet.train.learner import Learner, Limits, quiet_collector
from whippet.train.memory import Workload, choose_limits, peak_bytes
from whippet.train.objectives import sft
from whippet.train.optim import check_optimizer, make_optimizer, trained_parameters
from whippet.train.plan import budget_bytes

LLAMA_3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
SHAPES = {
    "8b": ModelConfig(
        "llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, rope_theta=500000.0, rope_scaling=LLAMA_3
    ),
    "3b": ModelConfig(
        "llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072, rope_theta=500000.0, rope_scaling=LLAMA_3,
        tie_embeddings=True,
    ),
    "1b": ModelConfig(
        "llama", 128256, 2048, 8192, 16, 32, 8, 64, 131072, rope_theta=500000.0, rope_scaling=LLAMA_3,
        tie_embeddings=True,
    ),
    "tiny": ModelConfig("llama", 1536, 192, 576, 8, 6, 3, 32, 1024, tie_embeddings=True),
}  # fmt: skip
"""Llama 3.1 8B, Llama 3.2 3B and 1B, and the embedded model."""
RATE = 2e-4


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    shape: str
    """One of ``SHAPES``."""
    docs: int = 2
    length: int = 2048
    """Tokens of a document."""
    budget: str = "auto"
    """As ``memory.budget``."""
    base: Literal["bf16", "nf4"] = "nf4"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    rank: int = 16

    @property
    def name(self) -> str:
        return f"{self.shape} {self.base} {self.docs}x{self.length} {self.budget}"

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.docs * self.length


SETTINGS: tuple[Setting, ...] = (
    Setting("8b", budget="6.8GiB", optimizer="adamw8bit"),
    Setting("8b", budget="20.8GiB"),
    Setting("8b", docs=1, length=32768, budget="14GiB", optimizer="adamw8bit"),
    Setting("3b"),
    Setting("1b"),
)
CPU_SETTINGS: tuple[Setting, ...] = (Setting("tiny", length=512),)


@dataclass(frozen=True)
class Measured:
    """One setting's figures. Bytes and seconds."""

    setting: Setting
    limits: Limits
    tokens_per_s: float
    step_s: float
    fastest_s: float
    slowest_s: float
    first_step_s: float
    peak: int | None
    """Of tensors on a GPU; None on a CPU, where the process' peak would say nothing."""
    planned: int
    loss: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        peak = "" if self.peak is None else f"  peak {size(self.peak)}"
        again = f"{self.limits.recompute} recomputed, {self.limits.park} parked"
        return (
            f"{self.setting.name}\n    {self.tokens_per_s:,.0f} tokens/s  {1000 * self.step_s:,.1f} ms a step{peak}  "
            f"planned {size(self.planned)}\n    {again}, {self.limits.micro_tokens:,} tokens at once"
        )


def bench(settings: Sequence[Setting], device: torch.device, *, steps: int, warmup: int = 3) -> Iterator[Measured]:
    """Measure ``settings``, one after the other. Raises UsageError for a budget that cannot hold one."""
    for setting in settings:
        yield measure(setting, device, steps=steps, warmup=warmup)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure(
    setting: Setting, device: torch.device, *, steps: int, warmup: int, limits: Limits | None = None
) -> Measured:
    """Time ``steps`` optimiser steps after ``warmup``. ``limits`` instead of those that fit the setting's budget."""
    learner, work = make_learner(setting, device, limits)
    times: list[float] = []
    with quiet_collector():
        for number in range(warmup + steps):
            step = random_step(setting, work.config.vocab_size, number)
            if number == warmup and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            _wait(device)
            start = time.perf_counter()
            learnt = learner.learn(step, RATE, number)
            _wait(device)
            times.append(time.perf_counter() - start)
    usual = statistics.median(times[warmup:])
    return Measured(
        setting=setting,
        limits=learner.limits,
        tokens_per_s=setting.tokens / usual,
        step_s=usual,
        fastest_s=min(times[warmup:]),
        slowest_s=max(times[warmup:]),
        first_step_s=times[0],
        peak=speed.peak_memory(device) if device.type == "cuda" else None,
        planned=peak_bytes(work, learner.limits),
        loss=learnt.loss,
    )


def make_learner(setting: Setting, device: torch.device, limits: Limits | None = None) -> tuple[Learner, Workload]:
    """A learner over random weights, and what the planner knows of it."""
    config, options = SHAPES[setting.shape], LoraOptions(r=setting.rank)
    train = TrainOptions(learning_rate=RATE, optimizer=setting.optimizer)
    check_optimizer(train)
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    work = Workload(
        config, setting.base, compute.itemsize, options, setting.optimizer, device.type, setting.length,
        setting.tokens, 1.0,
    )  # fmt: skip
    if limits is None:
        limits = choose_limits(work, budget_bytes(parse_bytes(setting.budget, "budget"), device))
    decoder = random_decoder(config, setting.base, device, compute)
    lora.attach(decoder, options, 0)
    parameters = trained_parameters(decoder, "lora")
    tell = partial(print, file=sys.stderr)
    return Learner(decoder, parameters, make_optimizer(parameters, train), sft.loss, train, limits, tell), work


def random_decoder(
    config: ModelConfig, base: str, device: torch.device, compute: torch.dtype, *, seed: int = 0
) -> Decoder:
    """A decoder whose weights are drawn on ``device``: normal with deviation 0.02, norms one."""
    draw = torch.Generator(device).manual_seed(seed)
    held = torch.bfloat16 if base == "bf16" else compute
    decoder = Decoder(config, compute_dtype=compute, device="meta", dtype=held)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw, device=device).mul_(0.02).to(held)

    for name, parameter in list(decoder.named_parameters()):
        path, _, leaf = name.rpartition(".")
        module = decoder.get_submodule(path)
        if isinstance(module, Projection) and base == "nf4":
            parts = [quantize_nf4(normal(rows.stop - rows.start, module.in_size)) for rows in module.parts.values()]
            module.set_nf4(parts[0] if len(parts) == 1 else join_rows(parts))
            continue
        value = (
            torch.ones(parameter.shape, device=device, dtype=held) if parameter.ndim == 1 else normal(*parameter.shape)
        )
        setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    return decoder


def random_step(setting: Setting, vocabulary: int, seed: int) -> Step:
    """Documents of random tokens, of which all but the first carry loss."""
    draw = np.random.default_rng(seed)
    weights = np.ones(setting.length, dtype=np.float32)
    weights[0] = 0.0
    documents = [draw.integers(0, vocabulary, setting.length, dtype=np.int32) for _ in range(setting.docs)]
    batch = make_batch([Weighed(ids, weights) for ids in documents])
    return Step((batch,), batch.weight_sum, setting.tokens, setting.docs, DataPosition())


def circumstances(device: torch.device) -> dict[str, Any]:
    """What the figures depend on, besides the settings."""
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "attention": backend(device, compute, 128),
        "versions": {
            "whippet": __version__,
            "torch": torch.__version__,
            "triton": getattr(triton_jit.triton, "__version__", None),
            "python": platform.python_version(),
        },
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
