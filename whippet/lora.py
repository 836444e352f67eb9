"""Low-rank adapters over a finished decoder: attach, list, merge, switch off.

In: a ``Decoder`` and ``LoraOptions``. An adapter adds ``scale * x @ A.T @ B.T`` to its projection (Hu et al. 2021,
https://arxiv.org/abs/2106.09685), with ``scale = alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA (Kalajdzievski 2023,
https://arxiv.org/abs/2312.03732). Factors are fp32; everything else is frozen.

Adapters that others have trained may hold more: a magnitude for each row (DoRA, Liu et al. 2024,
https://arxiv.org/abs/2402.09353), and whole weights. Both are put in place of base weights (``Swap``), and ``disabled``
puts those back.
r: rank. K: inputs. N: outputs of a fused projection. n: outputs of one part of it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from whippet.errors import UsageError
from whippet.kernels import nf4_fp8
from whippet.kernels.fp8 import FP8Tensor
from whippet.kernels.nf4_tensor import NF4Tensor, fold_absmax
from whippet.model.decoder import Decoder
from whippet.model.projection import Adapter, Projection
from whippet.model.size import adapted
from whippet.options import KNOWN_TARGETS, TARGETS, LoraOptions


@dataclass(frozen=True)
class Place:
    """An adapter to be attached."""

    r: int
    scale: float


@dataclass(frozen=True)
class Swap:
    """What stands in a module in place of what its base has."""

    module: nn.Module
    name: str
    base: Any
    tuned: Any


@dataclass(frozen=True)
class Magnitude:
    """DoRA of one adapter, as it was read."""

    rows_n: Tensor
    """fp32: the length of each row of the tuned matrix."""
    b_nr: Tensor
    """B, before it took the rows' factors."""


@dataclass
class Overlay:
    """What lies over a base beside low-rank factors."""

    swaps: list[Swap]
    magnitudes: dict[str, Magnitude]
    """By the adapter's name, such as ``layers.3.q_proj``."""


_OVERLAYS: WeakKeyDictionary[Decoder, Overlay] = WeakKeyDictionary()
"""Few decoders have one, and the decoder's own code need not know."""


def attach(decoder: Decoder, options: LoraOptions, seed: int) -> None:
    """Freeze every weight of ``decoder`` and give each target projection an adapter that changes nothing yet.

    A is drawn uniformly from ±1/sqrt(K) (what ``kaiming_uniform_(a=sqrt(5))`` is), on the CPU from ``seed`` and in a
    fixed order, so it is the same on every device; B is zero. Raises UsageError for options that make no sense.
    """
    _check(options)
    chosen = adapted(decoder.config, options.targets)
    decoder.requires_grad_(False)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, projection in decoder.projections():
        if len(projection.adapters):
            raise UsageError(f"{name} has an adapter already; merge it first, or load the base anew")
        for part in projection.parts:
            if part in chosen:
                projection.adapters[part] = _new_adapter(projection, part, options, generator)


def attach_each(decoder: Decoder, places: Mapping[tuple[int, str], Place], dropout: float) -> None:
    """The same for factors that are about to be read, and so are zero: one adapter for each layer and part of
    ``places``, such as ``(3, "q_proj")``. Raises UsageError for a place that the decoder has not."""
    decoder.requires_grad_(False)
    wanted = dict(places)
    for name, projection in decoder.projections():
        if len(projection.adapters):
            raise UsageError(f"{name} has an adapter already; merge it first, or load the base anew")
        index = int(name.split(".")[1])
        for part, rows in projection.parts.items():
            if (place := wanted.pop((index, part), None)) is not None:
                a_rK = torch.zeros(place.r, projection.in_size, device=projection.device)
                b_nr = torch.zeros(rows.stop - rows.start, place.r, device=projection.device)
                projection.adapters[part] = Adapter(a_rK, b_nr, scale=place.scale, dropout=dropout)
    if wanted:
        raise UsageError(f"the model has no projection {next(iter(wanted))}")


def overlay(decoder: Decoder) -> Overlay:
    """What lies over the base of ``decoder`` beside factors; to be added to by who reads an adapter."""
    return _OVERLAYS.setdefault(decoder, Overlay([], {}))


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
    swaps = _OVERLAYS[decoder].swaps if decoder in _OVERLAYS else []
    projections = [projection for _, projection in decoder.projections()]
    before = [projection.adapters_enabled for projection in projections]
    for projection in projections:
        projection.adapters_enabled = False
    for swap in reversed(swaps):
        setattr(swap.module, swap.name, swap.base)
    try:
        yield
    finally:
        for swap in swaps:
            setattr(swap.module, swap.name, swap.tuned)
        for projection, enabled in zip(projections, before, strict=True):
            projection.adapters_enabled = enabled


def swap(decoder: Decoder, module: nn.Module, name: str, tuned: Any) -> None:
    """Put ``tuned`` in place of what ``module.name`` is; the base's own stays in memory for ``disabled``."""
    overlay(decoder).swaps.append(Swap(module, name, getattr(module, name), tuned))
    setattr(module, name, tuned)


@torch.no_grad()
def scale_rows(decoder: Decoder, name: str, magnitudes: Mapping[str, Tensor]) -> None:
    """DoRA over the projection ``name`` (``layers.3.qkv``), whose factors have been read: each row of a part in
    ``magnitudes`` (fp32 ``[n]``) gets that length.

        m / ‖W + s B A‖ · (W + s B A)  =  c W + s (c B) A        c = m / ‖W + s B A‖, a number a row

    So the rows of W are scaled, in fp32, and those of B: the product stays one of a frozen matrix and factors, and
    where W is quantised its scales take c (``_scaled``). ``disabled`` needs W as it was: a dense W is held twice.
    """
    projection = decoder.get_submodule(name)
    assert isinstance(projection, Projection)
    tuned_NK = merged_weight(projection)
    factor_N = torch.ones(projection.out_size, device=projection.device)
    for part, adapter in projection.adapter_items():
        if part in magnitudes:
            rows_n = magnitudes[part].to(projection.device, torch.float32)
            factor_n = rows_n / tuned_NK[projection.parts[part]].norm(dim=1)
            factor_N[projection.parts[part]] = factor_n
            prefix = name.rpartition(".")[0]
            overlay(decoder).magnitudes[f"{prefix}.{part}"] = Magnitude(rows_n, adapter.b.detach().clone())
            adapter.b.mul_(factor_n[:, None])
    if projection.quantised is None:
        weight = (projection.dense.float() * factor_N[:, None]).to(projection.dense.dtype)
        swap(decoder, projection, "weight", nn.Parameter(weight, requires_grad=False))
    else:
        swap(decoder, projection, "quantised", _scaled(projection.quantised, factor_N, name))


def _scaled(weight: Any, factor_N: Tensor, name: str) -> Any:
    """A quantised matrix with its rows scaled: the codes stay, and what they are multiplied with is scaled."""
    if isinstance(weight, FP8Tensor):
        return replace(weight, scales=weight.scales * factor_N)
    if not isinstance(weight, NF4Tensor):
        return replace(weight, absmax=weight.absmax * factor_N)
    if weight.shape[1] % weight.block_size:
        raise UsageError(f"{name}: DoRA over NF4 needs rows of whole blocks of {weight.block_size} weights")
    plain = fold_absmax(weight)
    scaled = plain.absmax.view(len(factor_N), -1) * factor_N[:, None]
    made = replace(plain, absmax=scaled.flatten(), fp8_rows=None)
    return made if weight.fp8_rows is None else nf4_fp8.with_rows(made, name=name)


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
        if target not in KNOWN_TARGETS:
            close = difflib.get_close_matches(target, KNOWN_TARGETS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"lora.targets: unknown projection {target!r}{hint} Known: {', '.join(TARGETS)}")
