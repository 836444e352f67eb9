"""``adapter_config.json`` of PEFT: read with its meaning, written with it.

Which modules are adapted is what the tensors say; where ``target_modules`` is a list it must agree, by PEFT's rules.
The rank of each is that of its tensors, and must be what ``rank_pattern`` and ``r`` say; alpha comes from
``alpha_pattern`` and ``lora_alpha``. A pattern is a regular expression that must match the whole of a module's path, or
its end after a dot; the first of a table that does counts. Those that could take long to match are refused: an adapter
is a stranger's file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whippet.errors import ModelError
from whippet.lora import Place
from whippet.options import LoraOptions
from whippet.weights.files import read_json

CONFIG = "adapter_config.json"
PEFT_VERSION = "0.19.0"
"""The version of PEFT whose fields are written; older and newer ones read them."""
UNSUPPORTED = (
    "layer_replication", "trainable_token_indices", "target_parameters", "lora_bias", "fan_in_fan_out", "use_qalora",
    "use_bdlora", "alora_invocation_tokens", "arrow_config", "velora_config", "monteclora_config", "kappa_tune_config",
)  # fmt: skip
"""Keys that change what an adapter computes, or what its files hold, when they are set. None is read yet."""
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start that leave the base as it is. Others (pissa, olora, loftq, corda, ...) change the base's weights."""
MAX_PATTERN = 500
REPEATS = re.compile(r"[*+{]")
REPEATED_GROUP = re.compile(r"\)[*+?{]|\]\{|\\[1-9]")


@dataclass(frozen=True)
class AdapterConfig:
    """What a config says of the computation."""

    where: Path
    base: str
    """Path or hub id; empty if it names none."""
    r: int
    alpha: float
    dropout: float
    rslora: bool
    dora: bool
    target_modules: tuple[str, ...] | None
    """Where it is a list; None for a regular expression, ``all-linear`` or nothing."""
    layers: tuple[int, ...] | None
    """``layers_to_transform``; None for all."""
    layers_pattern: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    tied: bool
    """``ensure_weight_tying``: what replaces a tied embedding replaces the output matrix."""

    def place(self, module: str) -> Place:
        """The adapter of a module (``model.layers.3.self_attn.q_proj``)."""
        r = int(_by_pattern(self.rank_pattern, module, self.r))
        alpha = float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return Place(r, alpha / (math.sqrt(r) if self.rslora else r))

    def targets(self, module: str) -> bool:
        """Whether a list of targets names this module; True where there is no list."""
        if self.target_modules is None:
            return True
        if module in self.target_modules:
            return True
        if not any(module.endswith(f".{target}") for target in self.target_modules):
            return False
        if self.layers is None:
            return True
        names = self.layers_pattern or (r"[^.]*",)
        found = (re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module) for name in names)
        match = next((match for match in found if match), None)
        return match is not None and int(match[1]) in self.layers

    def saves(self, module: str) -> bool:
        """Whether ``modules_to_save`` names this module."""
        return any(module.endswith(name) for name in self.modules_to_save)


def read_config(folder: Path) -> AdapterConfig:
    """The config of the adapter in ``folder``. ModelError names the key that is wrong or not supported."""
    where = folder / CONFIG
    raw = read_json(where)
    if raw.get("peft_type") != "LORA":
        raise ModelError(f"{where}: peft_type is {str(raw.get('peft_type'))[:60]!r}; only 'LORA' is read")
    for key in UNSUPPORTED:
        if raw.get(key):
            raise ModelError(f"{where}: {key} is {str(raw[key])[:60]}, which is not supported yet")
    if raw.get("bias", "none") != "none":
        raise ModelError(f"{where}: bias is {str(raw['bias'])[:60]!r}; only 'none' is supported")
    if raw.get("init_lora_weights", True) not in PLAIN_INITS:
        said = str(raw["init_lora_weights"])[:60]
        raise ModelError(f"{where}: init_lora_weights {said!r} changes the base, and is not supported")
    keys = _Keys(raw, where)
    targets = raw.get("target_modules")
    return AdapterConfig(
        where=where,
        base=str(raw.get("base_model_name_or_path") or ""),
        r=int(keys.number("r", raw.get("r", 8), whole=True)),
        alpha=keys.number("lora_alpha", raw.get("lora_alpha", 8)),
        dropout=keys.number("lora_dropout", raw.get("lora_dropout", 0.0)),
        rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        target_modules=None if targets is None or isinstance(targets, str) else keys.texts("target_modules"),
        layers=keys.layers(),
        layers_pattern=keys.patterns(),
        rank_pattern={key: int(value) for key, value in keys.table("rank_pattern", whole=True).items()},
        alpha_pattern=keys.table("alpha_pattern"),
        modules_to_save=keys.texts("modules_to_save"),
        tied=bool(raw.get("ensure_weight_tying")),
    )


def adapter_config(
    options: LoraOptions,
    base_name: str,
    *,
    revision: str = "main",
    target_modules: Iterable[str] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    modules_to_save: Iterable[str] = (),
    dora: bool = False,
) -> dict[str, Any]:
    """The content of ``adapter_config.json``."""
    saved = list(modules_to_save)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "r": options.r,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": sorted(options.targets if target_modules is None else target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": options.rslora,
        "use_dora": dora,
        "modules_to_save": saved or None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "peft_version": PEFT_VERSION,
    }


def _by_pattern(table: Mapping[str, float], module: str, default: float) -> float:
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class _Keys:
    """Typed access; each complaint names the file and the key."""

    def __init__(self, raw: Mapping[str, Any], where: Path) -> None:
        self.raw, self.where = raw, where

    def number(self, key: str, value: Any, *, whole: bool = False) -> float:
        if type(value) not in ((int,) if whole else (int, float)) or not math.isfinite(value) or (whole and value < 1):
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]!r}, and must be a number")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]}, and must be a list of names")
        return tuple(value)

    def table(self, key: str, *, whole: bool = False) -> dict[str, float]:
        value = self.raw.get(key) or {}
        if not isinstance(value, dict):
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]}, and must be a table")
        for pattern in value:
            self._check_pattern(key, pattern)
        return {pattern: self.number(f"{key}.{pattern[:60]}", item, whole=whole) for pattern, item in value.items()}

    def layers(self) -> tuple[int, ...] | None:
        value = self.raw.get("layers_to_transform")
        value = [value] if type(value) is int else value
        if value is None or value == []:
            return None
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            raise ModelError(f"{self.where}: layers_to_transform is {str(value)[:60]}, and must be a list of numbers")
        return tuple(value)

    def patterns(self) -> tuple[str, ...]:
        value = self.raw.get("layers_pattern") or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{self.where}: layers_pattern is {str(value)[:60]}, and must be a name or a list of them")
        for pattern in value:
            self._check_pattern("layers_pattern", pattern)
        return tuple(item for item in value if item)

    def _check_pattern(self, key: str, pattern: str) -> None:
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(f"{self.where}: {key} has {pattern[:60]!r}, which is no regular expression") from error
        if len(pattern) > MAX_PATTERN or REPEATED_GROUP.search(pattern) or len(REPEATS.findall(pattern)) > 2:
            raise ModelError(
                f"{self.where}: {key} has {pattern[:60]!r}, which could take long to match; name the modules"
            )
