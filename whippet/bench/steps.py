"""Steps of real shapes, timed as the loop runs them.

Comes in: a ``Setting``, such as "an 8B model in NF4, 2 × 2048 tokens, in 6.8 GiB". Goes out: ``Measured``: the median
step, the peak of memory beside the planned one. Weights are random and made on the device, every token is supervised,
documents have one length: what other trainers' benchmarks do. Nothing is read from disk.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from whippet import lora
from whippet.bench.settings import SHAPES, Setting
from whippet.data.batches import DataPosition, Step, make_batch
from whippet.data.weigh import Weighed
from whippet.kernels.fp8_tensor import quantize_fp8
from whippet.kernels.nf4 import join_rows, quantize_nf4
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.model.projection import Projection
from whippet.options import LoraOptions, TrainOptions
from whippet.recipe import parse_bytes
from whippet.report.figures import size
from whippet.train import speed
from whippet.train.choose import choose_limits
from whippet.train.learner import Learner, quiet_collector
from whippet.train.limits import Limits
from whippet.train.memory import Workload, peak_bytes
from whippet.train.objectives import sft
from whippet.train.optim import check_optimizer, make_optimizer, trained_parameters
from whippet.train.plan import budget_bytes

RATE = 2e-4


@dataclass(frozen=True)
class Measured:
    """One setting's figures. Bytes and seconds."""

    setting: Setting
    limits: Limits
    tokens_per_s: float
    """Of the median step."""
    step_s: float
    fastest_s: float
    slowest_s: float
    first_step_s: float
    peak: int | None
    """Of tensors on a GPU, over all steps; None on a CPU, where the process' peak would say nothing."""
    reserved: int | None
    """What the allocator held for them at most."""
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


@dataclass(frozen=True)
class Timed:
    """One optimiser step."""

    seconds: float
    tokens: int
    examples: int
    loss: float


@dataclass(frozen=True)
class Peak:
    """The most bytes since the first step; None on a CPU."""

    allocated: int | None
    reserved: int | None


def measure(
    setting: Setting, device: torch.device, *, steps: int, warmup: int, limits: Limits | None = None
) -> Measured:
    """Time ``steps`` optimiser steps after ``warmup``. ``limits`` instead of those that fit the setting's budget.

    Raises UsageError for a budget that cannot hold the setting.
    """
    learner, work = make_learner(setting, device, limits)
    given = (random_step(setting, work.config.vocab_size, number) for number in count())
    times, peak = time_steps(learner, given, warmup + steps)
    timed = [one.seconds for one in times[warmup:]]
    usual = statistics.median(timed)
    return Measured(
        setting=setting,
        limits=learner.limits,
        tokens_per_s=setting.tokens / usual,
        step_s=usual,
        fastest_s=min(timed),
        slowest_s=max(timed),
        first_step_s=times[0].seconds,
        peak=peak.allocated,
        reserved=peak.reserved,
        planned=peak_bytes(work, learner.limits),
        loss=times[-1].loss,
    )


def time_steps(learner: Learner, given: Iterable[Step], number: int) -> tuple[list[Timed], Peak]:
    """Do the first ``number`` steps that are ``given``, each timed by itself.

    The peak is that of all of them: recording a step, too, needs the memory that there is.
    """
    device = learner.decoder.device
    on_gpu = device.type == "cuda"
    times: list[Timed] = []
    if on_gpu:
        torch.cuda.empty_cache()  # what making the weights took is not theirs
        torch.cuda.reset_peak_memory_stats(device)
    with quiet_collector():
        for index, step in zip(range(number), given, strict=False):
            wait(device)
            start = time.perf_counter()
            learnt = learner.learn(step, RATE, index)
            wait(device)
            times.append(Timed(time.perf_counter() - start, step.num_tokens, step.num_examples, learnt.loss))
    if not on_gpu:
        return times, Peak(None, None)
    return times, Peak(speed.peak_memory(device), torch.cuda.max_memory_reserved(device))


def make_learner(
    setting: Setting, device: torch.device, limits: Limits | None = None, work: Workload | None = None
) -> tuple[Learner, Workload]:
    """A learner over random weights, and what the planner knows of it: ``work``, or what ``setting`` says."""
    options = LoraOptions(r=setting.rank)
    train = TrainOptions(learning_rate=RATE, optimizer=setting.optimizer)
    check_optimizer(train)
    work = work or workload(setting, device)
    budget = budget_bytes(parse_bytes(setting.budget, "budget"), device)
    if limits is None:
        limits = choose_limits(work, budget)
    decoder = random_decoder(work.config, setting.base, device, _compute(device))
    if setting.compute == "fp8":
        for name, projection in decoder.projections():
            projection.multiply_in_fp8(name=name)
    lora.attach(decoder, options, 0)
    parameters = trained_parameters(decoder, "lora")
    tell = partial(print, file=sys.stderr)
    return Learner(decoder, parameters, make_optimizer(parameters, train), sft.loss, train, limits, tell, budget), work


def workload(
    setting: Setting, device: torch.device, *, longest: int | None = None, tokens: int | None = None
) -> Workload:
    """``setting`` as the planner sees it; its documents, or such as have ``longest`` tokens, ``tokens`` a step."""
    return Workload(
        SHAPES[setting.shape],
        setting.base,
        _compute(device).itemsize,
        LoraOptions(r=setting.rank),
        setting.optimizer,
        device.type,
        longest or setting.length,
        tokens or setting.tokens,
        1.0,
        fp8=setting.compute == "fp8",
    )


def random_decoder(
    config: ModelConfig, base: str, device: torch.device, compute: torch.dtype, *, seed: int = 0
) -> Decoder:
    """A decoder whose weights are drawn on ``device``: normal with deviation 0.02, norms one, biases zero."""
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
            module.set_quantised(parts[0] if len(parts) == 1 else join_rows(parts))
            continue
        if isinstance(module, Projection) and base == "fp8" and leaf == "weight":
            module.set_quantised(quantize_fp8(normal(*parameter.shape)))
            continue
        if parameter.ndim == 1:
            # A bias, or a norm's scale, which some families hold less one.
            fill = 0.0 if leaf == "bias" or config.unit_offset else 1.0
            value = torch.full(parameter.shape, fill, device=device, dtype=held)
        else:
            value = normal(*parameter.shape)
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


def release(device: torch.device) -> None:
    """Give back what the last measurement held, so that the next one, or another process, finds it free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # Pinned memory of the host is kept too, up to tens of GiB after long documents.
        if (empty_host_cache := getattr(torch.accelerator, "empty_host_cache", None)) is not None:
            empty_host_cache()


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compute(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
