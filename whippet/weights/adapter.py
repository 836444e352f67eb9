"""LoRA adapters in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``, written and read.

Tensors are named ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`` (A is ``[r, inputs]``, B
``[outputs, r]``, both fp32); DoRA's magnitudes end in ``lora_magnitude_vector`` (``[outputs]``); whole modules of
``modules_to_save`` (embedding, output matrix, norms) have their own names after the prefix. On reading, keys of newer
versions that are not known are passed over; what would change the computation and is not supported is a ModelError
(``adapter_config.py``). Every tensor must find its place.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from whippet import lora
from whippet.errors import ModelError
from whippet.model.decoder import Decoder
from whippet.model.size import adapted
from whippet.options import KNOWN_TARGETS, TARGETS, LoraOptions
from whippet.report.card_usage import VLLM_RANKS, VLLM_UNASKED
from whippet.weights.adapter_config import CONFIG, AdapterConfig, adapter_config, read_config
from whippet.weights.files import write_json
from whippet.weights.header import TensorInfo, read_header, refuse_pickle
from whippet.weights.hf import save_tensors
from whippet.weights.names import Part, peft_module, table

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "adapter_config",
    "adapter_notes",
    "load_adapter",
    "read_adapter_config",
    "save_adapter",
]

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FLOATS = ("F32", "F16", "BF16")
MAGNITUDE = ".lora_magnitude_vector"
KEY = re.compile(r"layers\.(\d{1,6})\.(\w+)\.(a|b)", re.ASCII)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def save_adapter(
    decoder: Decoder, options: LoraOptions, folder: Path, base_name: str, *, revision: str = "main"
) -> list[str]:
    """Write what lies over the base of ``decoder`` into ``folder`` (made if absent); ``base_name`` is a path or hub id.

    Ranks and scales are the adapters' own: where they are not those of ``options``, the config names the modules.
    Returns what other programs will not like about it, a line each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    magnitudes, saved = lora.overlay(decoder).magnitudes, _saved_modules(decoder)
    tensors = {_peft_key(name): factor.detach() for name, factor in lora.adapter_parameters(decoder).items()}
    for name, magnitude in magnitudes.items():
        _, index, part = name.split(".")
        module = f"{PREFIX}{peft_module(int(index), part)}"
        tensors[module + MAGNITUDE] = magnitude.rows_n
        tensors[f"{module}.lora_B.weight"] = magnitude.b_nr
    tensors |= {PREFIX + name: tensor.detach() for name, tensor in saved.items()}
    save_tensors(folder / WEIGHTS, tensors)
    ranks, alphas, modules = _patterns(decoder, options)
    config = adapter_config(
        options,
        base_name,
        revision=revision,
        target_modules=modules,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        modules_to_save=[name.removesuffix(".weight") for name in saved],
        dora=bool(magnitudes),
    )
    write_json(folder / CONFIG, config)
    return adapter_notes(folder)


def adapter_notes(folder: Path) -> list[str]:
    """What other programs will not like about the adapter in ``folder``, a line each."""
    config = read_config(folder)
    refused = [key for key, held in (("modules_to_save", config.modules_to_save), ("use_dora", config.dora)) if held]
    notes = [f"vLLM refuses adapters with {key}; merge it for that (whippet export --to hf)" for key in refused]
    largest = max([config.r, *config.rank_pattern.values()])
    if largest > VLLM_RANKS[-1]:
        notes.append(f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and this has {largest}; merge it for that")
    elif largest > VLLM_UNASKED:
        notes.append(f"vLLM wants --max-lora-rank {min(r for r in VLLM_RANKS if r >= largest)} for it")
    return notes


def read_adapter_config(folder: Path) -> tuple[LoraOptions, str]:
    """The options of the adapter in ``folder`` and the name of its base. Raises ModelError for what is not supported.

    ``targets`` are the projections that the tensors name, whatever form ``target_modules`` has. Ranks and scales that
    differ by module are not told here.
    """
    config = read_config(folder)
    return _options(config, _header(folder)), config.base


def load_adapter(decoder: Decoder, folder: Path) -> LoraOptions:
    """Lay the adapter in ``folder`` over ``decoder``, in eval mode; every tensor must find its place and shape."""
    config, path = read_config(folder), folder / WEIGHTS
    header = _header(folder)
    options = _options(config, header)
    modules = _adapted(decoder, header, path)
    for module in sorted(modules):
        if not config.targets(module):
            raise ModelError(f"{path}: {module} is adapted here, and target_modules in {CONFIG} does not name it")
    for module in _named(decoder, config, options):
        if module not in modules:
            raise ModelError(f"{path}: {_key(module, 'A')!r} is missing, though target_modules in {CONFIG} names it")
    lora.attach_each(decoder, {place: config.place(module) for module, place in modules.items()}, config.dropout)
    wanted = _wanted(decoder)
    magnitudes = _magnitudes(modules, wanted, header) if config.dora else {}
    wanted |= magnitudes
    saved = _whole_modules(decoder, set(header) - set(wanted), config, path)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()} | {
        PREFIX + part.name: part.shape for part in saved
    }
    if stray := sorted(set(shapes) ^ set(header)):
        fault = "is missing" if stray[0] in shapes else "has no place in this model"
        raise ModelError(f"{path}: {stray[0]!r} {fault} ({len(stray)} tensors do not match the base)")
    for name, info in header.items():
        if info.dtype not in FLOATS or info.shape != shapes[name]:
            raise ModelError(f"{path}: {name} is {info.dtype} {list(info.shape)}; wanted floats {list(shapes[name])}")
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name in header:
            tensor = file.get_tensor(name)
            if not bool(tensor.isfinite().all()):
                raise ModelError(f"{path}: {name} holds NaN or infinity")
            if name in wanted:
                wanted[name].copy_(tensor)
        _put_whole(decoder, {part.name: file.get_tensor(PREFIX + part.name) for part in saved}, config)
    if config.dora:
        _put_magnitudes(decoder, dict(zip(modules.values(), magnitudes.values(), strict=True)))
    decoder.eval()
    return options


def _options(config: AdapterConfig, header: dict[str, TensorInfo]) -> LoraOptions:
    found = {name.removesuffix(".weight").rsplit(".", 2)[-2] for name in header if ".lora_" in name}
    targets = tuple(target for target in KNOWN_TARGETS if target in found)
    if not targets:
        raise ModelError(f"{config.where.parent / WEIGHTS}: adapts none of {', '.join(TARGETS)}")
    return LoraOptions(r=config.r, alpha=config.alpha, dropout=config.dropout, targets=targets, rslora=config.rslora)


def _header(folder: Path) -> dict[str, TensorInfo]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickle = folder / "adapter_model.bin"
        if pickle.exists():
            refuse_pickle(pickle, b"")
        raise ModelError(f"{path}: missing")
    return read_header(path)


def _adapted(decoder: Decoder, header: dict[str, TensorInfo], path: Path) -> dict[str, tuple[int, str]]:
    """The modules that have a factor A, with their layer and part. ModelError for a factor of anything else."""
    known = {
        peft_module(int(name.split(".")[1]), part): (int(name.split(".")[1]), part)
        for name, projection in decoder.projections()
        for part in projection.parts
    }
    found = {}
    for name in header:
        if ".lora_embedding_" in name:
            raise ModelError(f"{path}: {name!r} adapts an embedding by low rank, which is not supported")
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if module == "lm_head":
            raise ModelError(f"{path}: {name!r} adapts the output matrix by low rank, which is not supported")
        if module not in known:
            raise ModelError(f"{path}: {name!r} has no place in this model")
        found[module] = known[module]
    return found


def _named(decoder: Decoder, config: AdapterConfig, options: LoraOptions) -> list[str]:
    """Every module that must be adapted: those that a list names, or the same parts in all layers."""
    if config.target_modules is None:
        return []
    parts = [(int(name.split(".")[1]), part) for name, p in decoder.projections() for part in p.parts]
    modules = [peft_module(index, part) for index, part in parts if part in options.targets]
    return [module for module in modules if config.targets(module)]


def _wanted(decoder: Decoder) -> dict[str, Tensor]:
    """Where each factor is to be read to."""
    return {_peft_key(name): factor for name, factor in lora.adapter_parameters(decoder).items()}


def _magnitudes(
    modules: dict[str, tuple[int, str]], factors: dict[str, Tensor], header: dict[str, TensorInfo]
) -> dict[str, Tensor]:
    """Where DoRA's magnitudes are to be read to, in the order of ``modules``. Old files name them as a weight."""
    found = {}
    for module in modules:
        name = f"{PREFIX}{module}{MAGNITUDE}"
        name = f"{name}.weight" if f"{name}.weight" in header else name
        found[name] = torch.empty(len(factors[_key(module, "B")]))
    return found


def _put_magnitudes(decoder: Decoder, magnitudes: dict[tuple[int, str], Tensor]) -> None:
    for name, projection in list(decoder.projections()):
        index = int(name.split(".")[1])
        found = {part: magnitudes[index, part] for part in projection.parts if (index, part) in magnitudes}
        if found:
            lora.scale_rows(decoder, name, found)


def _whole_modules(decoder: Decoder, names: set[str], config: AdapterConfig, path: Path) -> list[Part]:
    """Tensors that replace the base's, by the names that the checkpoint gives them."""
    places = {
        part.name: part
        for entry in table(replace(decoder.config, tie_embeddings=False))
        if not entry.quantisable and len(entry.parts) == 1
        for part in entry.parts
    }
    found = []
    for name in sorted(names):
        part = places.get(name.removeprefix(PREFIX))
        if part is None or name == part.name:
            continue
        # PEFT writes the embedding unasked where words were added to it.
        if not config.saves(part.name.removesuffix(".weight")) and part.name not in (EMBEDDING, HEAD):
            raise ModelError(f"{path}: {name!r} is a whole module, and modules_to_save in {CONFIG} does not name it")
        found.append(part)
    for listed in config.modules_to_save:
        if not any(part.name.removesuffix(".weight").endswith(listed) for part in found):
            raise ModelError(
                f"{config.where}: modules_to_save names {listed[:60]!r}; the file holds no such embedding, output "
                "matrix or norm, and others are not supported"
            )
    return found


def _put_whole(decoder: Decoder, tensors: dict[str, Tensor], config: AdapterConfig) -> None:
    """Whole weights in place of the base's. Tied matrices are parted if only one of them is replaced."""
    untied = replace(decoder.config, tie_embeddings=False)
    ours = {entry.parts[0].name: entry.ours for entry in table(untied)}
    if decoder.head is None and tensors.keys() & {EMBEDDING, HEAD} and not _stay_tied(tensors, config):
        lora.swap(decoder, decoder, "head", nn.Parameter(decoder.embedding.data, requires_grad=False))
        lora.swap(decoder, decoder, "config", untied)
    for name, tensor in tensors.items():
        path, _, attribute = ours[name].rpartition(".")
        module = decoder.get_submodule(path)
        if name == HEAD and decoder.head is None:
            continue
        held = getattr(module, attribute)
        tuned = nn.Parameter(tensor.to(held.device, held.dtype, copy=True), requires_grad=False)
        lora.swap(decoder, module, attribute, tuned)


def _stay_tied(tensors: dict[str, Tensor], config: AdapterConfig) -> bool:
    """Whether the output matrix goes on being the embedding."""
    if EMBEDDING not in tensors:
        return False
    if HEAD in tensors:
        return torch.equal(tensors[EMBEDDING], tensors[HEAD])
    return config.tied or not config.saves(EMBEDDING.removesuffix(".weight"))


def _saved_modules(decoder: Decoder) -> dict[str, Tensor]:
    """Whole weights that lie over the base, by the checkpoint's names."""
    swapped = {(id(swap.module), swap.name) for swap in lora.overlay(decoder).swaps}
    found: dict[str, Tensor] = {}
    for entry in table(decoder.config):
        path, _, name = entry.ours.rpartition(".")
        module = decoder.get_submodule(path)
        if not entry.quantisable and (id(module), name) in swapped:
            found[entry.parts[0].name] = getattr(module, name)
    return found


def _patterns(decoder: Decoder, options: LoraOptions) -> tuple[dict[str, int], dict[str, float], list[str]]:
    """Ranks and alphas that are not those of ``options``, by module; and the targets, by module if layers differ."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    targets = adapted(decoder.config, options.targets)
    modules, everywhere = [], True
    for name, projection in decoder.projections():
        index, adapters = int(name.split(".")[1]), dict(projection.adapter_items())
        everywhere &= set(adapters) == set(projection.parts) & set(targets)
        for part, adapter in adapters.items():
            module, r = peft_module(index, part), len(adapter.a)
            alpha = adapter.scale * (math.sqrt(r) if options.rslora else r)
            modules.append(module)
            if r != options.r:
                ranks[module] = r
            if not math.isclose(alpha, options.alpha, rel_tol=1e-9):
                alphas[module] = round(alpha, 9)
    return ranks, alphas, list(targets) if everywhere else modules


def _key(module: str, factor: str) -> str:
    return f"{PREFIX}{module}.lora_{factor}.weight"


def _peft_key(name: str) -> str:
    """``layers.3.q_proj.a`` → ``base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight``."""
    match = KEY.fullmatch(name)
    assert match, name
    index, part, factor = match.groups()
    return _key(peft_module(int(index), part), factor.upper())
