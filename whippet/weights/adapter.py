"""LoRA adapters in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``, written and read.

Tensors are named ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`` (A is ``[r, inputs]``, B
``[outputs, r]``, both fp32). On reading, keys of newer versions that are not known are passed over; what would change
the computation and is not supported (DoRA, extra trained modules, ranks that differ by pattern) is a ModelError.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from whippet import lora
from whippet.errors import ModelError
from whippet.model.decoder import Decoder
from whippet.options import TARGETS, LoraOptions
from whippet.weights.files import read_json, write_json
from whippet.weights.header import read_header, refuse_pickle
from whippet.weights.hf import save_tensors
from whippet.weights.names import peft_module

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PEFT_VERSION = "0.19.0"
"""The version of PEFT whose fields are written; older and newer ones read them."""
UNSUPPORTED = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication",
    "trainable_token_indices", "target_parameters", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora",
    "alora_invocation_tokens", "arrow_config", "velora_config", "monteclora_config", "kappa_tune_config",
)  # fmt: skip
"""Keys that change what an adapter computes, or what its files hold, when they are set. None is read yet."""
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start that leave the base as it is. Others (pissa, olora, loftq, corda, ...) change the base's weights."""
KEY = re.compile(r"layers\.(\d{1,6})\.(\w+)\.(a|b)", re.ASCII)


def save_adapter(
    decoder: Decoder, options: LoraOptions, folder: Path, base_name: str, *, revision: str = "main"
) -> None:
    """Write the adapters of ``decoder`` into ``folder`` (made if absent); ``base_name`` is a path or hub id."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_peft_key(name): parameter for name, parameter in lora.adapter_parameters(decoder).items()}
    save_tensors(folder / WEIGHTS, {name: tensor.detach() for name, tensor in tensors.items()})
    write_json(folder / CONFIG, adapter_config(options, base_name, revision=revision))


def adapter_config(options: LoraOptions, base_name: str, *, revision: str = "main") -> dict[str, Any]:
    """The content of ``adapter_config.json``."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "r": options.r,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": sorted(options.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": options.rslora,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "peft_version": PEFT_VERSION,
    }


def read_adapter_config(folder: Path) -> tuple[LoraOptions, str]:
    """The options of the adapter in ``folder`` and the name of its base. Raises ModelError for what is not supported.

    ``targets`` are the projections that the tensors name, whatever form ``target_modules`` has.
    """
    where = folder / CONFIG
    raw = read_json(where)
    if raw.get("peft_type") != "LORA":
        raise ModelError(f"{where}: peft_type is {raw.get('peft_type')!r}; only 'LORA' is read")
    for key in UNSUPPORTED:
        if raw.get(key):
            raise ModelError(f"{where}: {key} is {str(raw[key])[:60]}, which is not supported yet")
    if raw.get("bias", "none") != "none":
        raise ModelError(f"{where}: bias is {raw['bias']!r}; only 'none' is supported")
    if raw.get("init_lora_weights", True) not in PLAIN_INITS:
        raise ModelError(
            f"{where}: init_lora_weights {raw['init_lora_weights']!r} changes the base, and is not supported"
        )
    rank, alpha, dropout = raw.get("r", 8), raw.get("lora_alpha", 8), raw.get("lora_dropout", 0.0)
    for key, value, kinds in (
        ("r", rank, (int,)),
        ("lora_alpha", alpha, (int, float)),
        ("lora_dropout", dropout, (int, float)),
    ):
        if type(value) not in kinds:
            raise ModelError(f"{where}: {key} is {str(value)[:60]!r}, and must be a number")
    options = LoraOptions(
        r=rank, alpha=float(alpha), dropout=float(dropout), targets=_targets(folder), rslora=bool(raw.get("use_rslora"))
    )
    return options, str(raw.get("base_model_name_or_path") or "")


def load_adapter(decoder: Decoder, folder: Path) -> LoraOptions:
    """Attach the adapter in ``folder`` to ``decoder``, in eval mode; every tensor must find its place and shape."""
    options, _ = read_adapter_config(folder)
    path = folder / WEIGHTS
    header = read_header(path)
    lora.attach(decoder, options, seed=0)
    parameters = {_peft_key(name): parameter for name, parameter in lora.adapter_parameters(decoder).items()}
    if stray := sorted(set(parameters) ^ set(header)):
        fault = "is missing" if stray[0] in parameters else "has no place in this model"
        raise ModelError(f"{path}: {stray[0]!r} {fault} ({len(stray)} tensors do not match the base)")
    for name, info in header.items():
        if info.dtype not in ("F32", "F16", "BF16") or info.shape != tuple(parameters[name].shape):
            wanted = list(parameters[name].shape)
            raise ModelError(f"{path}: {name} is {info.dtype} {list(info.shape)}; wanted floats {wanted}")
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(name))
            if not bool(parameter.isfinite().all()):
                raise ModelError(f"{path}: {name} holds NaN or infinity")
    decoder.eval()
    return options


def _targets(folder: Path) -> tuple[str, ...]:
    """The projections that the adapter's tensors belong to, in the usual order."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickle = folder / "adapter_model.bin"
        if pickle.exists():
            refuse_pickle(pickle, b"")
        raise ModelError(f"{path}: missing")
    found = {name.removesuffix(".weight").rsplit(".", 2)[-2] for name in read_header(path) if name.count(".") > 2}
    targets = tuple(target for target in TARGETS if target in found)
    if not targets:
        raise ModelError(f"{path}: adapts none of {', '.join(TARGETS)}")
    return targets


def _peft_key(name: str) -> str:
    """``layers.3.q_proj.a`` → ``base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight``."""
    match = KEY.fullmatch(name)
    assert match, name
    index, part, factor = match.groups()
    return f"{PREFIX}{peft_module(int(index), part)}.lora_{factor.upper()}.weight"
