"""Low-rank adapters over a finished decoder: attach, list, merge, switch off.

In: a ``Decoder`` and ``LoraOptions``. An adapter adds ``scale * x @ A.T @ B.T`` to its projection (Hu et al. 2021,
https://arxiv.org/abs/2106.09685), with ``scale = alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA (Kalajdzievski 2023,
https://arxiv.org/abs/2312.03732). Factors are fp32; everything else is frozen.
r: rank. K: inputs. N: outputs of a fused projection. n: outputs of one part of it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from whippet.errors import UsageError
from whippet.model.decoder import Decoder
from whippet.model.projection import Adapter, Projection
from whippet.options import TARGETS, LoraOptions


def attach(decoder: Decoder, options: LoraOptions, seed: int) -> None:
    """Freeze every weight of ``decoder`` and give each target projection an adapter that changes nothing yet.

    A is drawn uniformly from ±1/sqrt(K) (what ``kaiming_uniform_(a=sqrt(5))`` is), on the CPU from ``seed`` and in a
    fixed order, so it is the same on every device; B is zero. Raises UsageError for options that make no sense.
    """
    _check(options)
    decoder.requires_grad_(False)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, projection in decoder.projections():
        if len(projection.adapters):
            raise UsageError(f"{name} has an adapter already; merge it first, or load the base anew")
        for part in projection.parts:
            if part in options.targets:
                projection.adapters[part] = _new_adapter(projection, part, options, generator)


def adapter_parameters(decoder: Decoder) -> dict[str, nn.Parameter]:
    """Every factor, fp32, by a stable name such as ``layers.3.q_proj.a``, in a stable order."""
    found: dict[str, nn.Parameter] = {}
    for index, block in enumerate(decoder.blocks()):
        for projection in (block.qkv, block.o, block.gate_up, block.down):
            for part, adapter in projection.adapter_items():
                found[f"layers.{index}.{part}.a"] = adapter.a
                found[f"layers.{index}.{part}.b"] = adapter.b
    return found


@torch.no_grad()
def merged_weight(projection: Projection) -> Tensor:
    """``W + scale * B @ A``, fp32 ``[N, K]``: the dequantised base with its adapters added in fp32. A new tensor."""
    weight_NK = projection.weight_fp32().clone()
    for part, adapter in projection.adapter_items():
        weight_NK[projection.parts[part]] += adapter.scale * (adapter.b.float() @ adapter.a.float())
    return weight_NK


@contextmanager
def disabled(decoder: Decoder) -> Iterator[None]:
    """Within this block the decoder computes as its base does."""
    projections = [projection for _, projection in decoder.projections()]
    before = [projection.adapters_enabled for projection in projections]
    for projection in projections:
        projection.adapters_enabled = False
    try:
        yield
    finally:
        for projection, enabled in zip(projections, before, strict=True):
            projection.adapters_enabled = enabled


def scale_of(options: LoraOptions) -> float:
    """The factor on an adapter's output."""
    return options.alpha / (math.sqrt(options.r) if options.rslora else options.r)


def _new_adapter(projection: Projection, part: str, options: LoraOptions, generator: torch.Generator) -> Adapter:
    rows = projection.parts[part]
    bound = 1 / math.sqrt(projection.in_size)
    a_rK = torch.empty(options.r, projection.in_size).uniform_(-bound, bound, generator=generator)
    b_nr = torch.zeros(rows.stop - rows.start, options.r, device=projection.device)
    return Adapter(a_rK.to(projection.device), b_nr, scale=scale_of(options), dropout=options.dropout)


def _check(options: LoraOptions) -> None:
    if options.r < 1:
        raise UsageError(f"lora.r is {options.r}, and must be 1 or more")
    if not 0 <= options.dropout < 1:
        raise UsageError(f"lora.dropout is {options.dropout}, and must be from 0 to below 1")
    if not math.isfinite(options.alpha):
        raise UsageError(f"lora.alpha is {options.alpha}, and must be a finite number")
    if not options.targets:
        raise UsageError(f"lora.targets is empty; choose from {', '.join(TARGETS)}")
    for target in options.targets:
        if target not in TARGETS:
            close = difflib.get_close_matches(target, TARGETS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"lora.targets: unknown projection {target!r}{hint} Known: {', '.join(TARGETS)}")
