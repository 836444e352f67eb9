"""Recipes: TOML files and ``--set`` overrides in, a checked ``Recipe`` out; and back to TOML.

Every key is a field of a class in ``options.py``. An unknown key, a value of the wrong type or one out of range raises
``UsageError`` that names the key, what was met and what was wanted.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from whippet.errors import UsageError
from whippet.options import KNOWN_TARGETS, TARGETS, LoraOptions, Recipe, Source
from whippet.report.grid import GRID, suggestion

TABLES = tuple(f.name for f in dataclasses.fields(Recipe) if f.name != "out")


def read_recipe(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read ``path`` (TOML), apply ``overrides`` (``{"lora.r": "32"}``), check everything."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML recipe: {error}") from None
    return make_recipe(raw, overrides, where=str(path))


def make_recipe(
    raw: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None, *, where: str = "recipe"
) -> Recipe:
    """Build a recipe from nested tables and dotted overrides.

    Override values may be strings as typed on a command line (``"32"``, ``"true"``, ``"[\\"q_proj\\"]"``, ``cosine``)
    or Python values.
    """
    nested: dict[str, Any] = {}
    for key, value in (raw or {}).items():
        nested[key] = dict(value) if isinstance(value, Mapping) else value
    for dotted, value in (overrides or {}).items():
        _place(nested, dotted, value)
    return _filled(check(_build(Recipe, nested, "", where), where))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write every key of ``recipe`` to ``path`` as TOML that ``read_recipe`` reads back to an equal recipe."""
    lines = [f"out = {_toml(recipe.out)}"]
    for table in TABLES:
        lines += ["", f"[{table}]"]
        options = getattr(recipe, table)
        for item in dataclasses.fields(options):
            value = getattr(options, item.name)
            if value is not None:
                lines.append(f"{item.name} = {_toml(value)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def known_keys() -> list[str]:
    """All keys, dotted, in the order of the page."""
    keys = ["out"]
    for item in dataclasses.fields(Recipe):
        if item.name in TABLES:
            keys += [f"{item.name}.{sub.name}" for sub in dataclasses.fields(_hints(Recipe)[item.name])]
    return keys


def check(recipe: Recipe, where: str = "recipe") -> Recipe:
    """Raise UsageError for values that no run could use; return the recipe."""
    model, lora, data, train = recipe.model, recipe.lora, recipe.data, recipe.train

    def wanted(ok: bool, key: str, value: Any, rule: str) -> None:
        if not ok:
            raise UsageError(f"{where}: {key} = {value!r}: must be {rule}")

    wanted(bool(model.path), "model.path", model.path, "a checkpoint folder or a hub id")
    wanted(bool(data.sources), "data.sources", [], "at least one file, folder or hub id")
    wanted(len({*model.add_tokens, ""}) > len(model.add_tokens), "model.add_tokens", model.add_tokens,
           "texts that are not empty, each once")  # fmt: skip
    if model.add_tokens and train.method != "full":
        raise UsageError(
            f"{where}: model.add_tokens: an adapter trains no rows of the vocabulary, so new tokens would stay what "
            'they begin as. Use train.method = "full", or tokens that the vocabulary has (many have reserved ones)'
        )
    wanted(lora.r >= 1, "lora.r", lora.r, "1 or more")
    wanted(lora.alpha > 0, "lora.alpha", lora.alpha, "above 0")
    wanted(0 <= lora.dropout < 1, "lora.dropout", lora.dropout, "from 0 to below 1")
    wanted(bool(lora.targets), "lora.targets", [], f"some of {', '.join(TARGETS)}")
    for target in lora.targets:
        if target not in KNOWN_TARGETS:
            raise UsageError(f"{where}: lora.targets: unknown projection {target!r}{suggest(target, KNOWN_TARGETS)}")
    wanted(data.max_length >= 2, "data.max_length", data.max_length, "2 or more")
    wanted(0 <= data.eval_fraction <= 0.5, "data.eval_fraction", data.eval_fraction, "from 0 to 0.5")
    for source in (*data.sources, *data.eval_sources):
        wanted(bool(source.path), "data.sources", source.path, "a path or hub id, not empty")
        wanted(source.weight > 0, f"the weight of {source.path}", source.weight, "above 0")
    wanted(not (data.eval_sources and data.eval_fraction), "data.eval_fraction", data.eval_fraction,
           "0 when data.eval_sources are given")  # fmt: skip
    wanted(train.max_steps >= 0, "train.max_steps", train.max_steps, "0 (epochs decide) or more")
    wanted(train.epochs > 0, "train.epochs", train.epochs, "above 0")
    wanted(train.learning_rate >= 0, "train.learning_rate", train.learning_rate, "0 (choose for me) or more")
    wanted(train.warmup >= 0, "train.warmup", train.warmup, "0 or more")
    wanted(train.clip >= 0, "train.clip", train.clip, "0 (off) or more")
    wanted(train.weight_decay >= 0, "train.weight_decay", train.weight_decay, "0 or more")
    for key in ("beta1", "beta2"):
        wanted(0 <= getattr(train, key) < 1, f"train.{key}", getattr(train, key), "from 0 to below 1")
    for key in ("tokens_per_step", "save_every", "eval_every", "sample_every", "seed"):
        wanted(getattr(train, key) >= 0, f"train.{key}", getattr(train, key), "0 or more")
    wanted(train.keep >= 1, "train.keep", train.keep, "1 or more")
    if train.method == "full":
        wanted(
            model.base in ("auto", "fp32"), "model.base", model.base, 'fp32 (master weights) with train.method = "full"'
        )
        wanted(lora == LoraOptions(), "lora", dataclasses.asdict(lora), 'left out with train.method = "full"')
    held_in = ("auto", "nf4", "fp8")
    if model.compute == "fp8":
        wanted(train.method != "full" and model.base in held_in, "model.compute", model.compute,
               'another than "fp8" unless adapters are trained over model.base = "nf4" or "fp8"')  # fmt: skip
    parse_bytes(recipe.memory.budget, "memory.budget")
    energy = recipe.energy
    if energy.country is not None and energy.country not in GRID:
        told = suggestion(energy.country)
        raise UsageError(f"{where}: energy.country: no figure for {energy.country!r}{told}")
    wanted(energy.pue >= 1, "energy.pue", energy.pue, "1 or more")
    wanted(0 <= energy.renewable_share <= 1, "energy.renewable_share", energy.renewable_share, "from 0 to 1")
    wanted(energy.gpu_watts is None or energy.gpu_watts > 0, "energy.gpu_watts", energy.gpu_watts, "above 0")
    return recipe


def _filled(recipe: Recipe) -> Recipe:
    if recipe.train.learning_rate:
        return recipe
    rate = {"lora": 2e-4, "full": 2e-5}[recipe.train.method]
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, learning_rate=rate))


def parse_bytes(text: str, key: str) -> int | None:
    """``"6.5GiB"``, ``"24GB"``, ``"800MiB"`` to bytes; ``"auto"`` to None."""
    if text == "auto":
        return None
    units = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    shown = text.strip().upper().replace(" ", "")
    for unit, factor in units.items():
        if shown.endswith(unit):
            try:
                number = float(shown.removesuffix(unit))
            except ValueError:
                break
            if math.isfinite(number) and number > 0:
                return int(number * factor)
    raise UsageError(f"{key} = {text!r}: must be 'auto' or a size such as '6.5GiB' or '24GB'")


def suggest(word: str, known: Sequence[str]) -> str:
    """A tail for an error message: the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f". Did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


# --- from raw values to fields ------------------------------------------------------------------------------------


def _place(nested: dict[str, Any], dotted: str, value: Any) -> None:
    whole, _, name = dotted.rpartition(".")
    within = whole in _tables()
    if not within and dotted not in known_keys():
        raise UsageError(f"unknown recipe key {dotted!r}{_suggest_key(dotted)}")
    table, _, key = (whole if within else dotted).partition(".")
    if not key:
        nested[table] = value
        return
    held = nested.get(table, {})
    if within:
        before = _parsed(held.get(key, {}))
        value = {**before, name: _parsed(value)} if isinstance(before, Mapping) else before
    nested[table] = {**held, key: value}


def _tables() -> list[str]:
    """The keys whose values are tables with names of their own."""
    return [key for key in known_keys() if "." in key and typing.get_origin(_hint(key)) is Mapping]


def _hint(dotted: str) -> Any:
    table, _, key = dotted.partition(".")
    return _hints(_hints(Recipe)[table])[key]


def _suggest_key(dotted: str) -> str:
    keys = known_keys()
    bare = dotted.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == bare]
    return f". Did you mean {same[0]!r}?" if same else suggest(dotted, keys)


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: type, raw: Mapping[str, Any], prefix: str, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where}: [{prefix.rstrip('.')}] must be a table, not {_shown(raw)}")
    hints = _hints(cls)
    values = {}
    for key, value in raw.items():
        if key not in hints:
            dotted = f"{prefix}{key}"
            raise UsageError(f"{where}: unknown recipe key {dotted!r}{_suggest_key(dotted)}")
        values[key] = _convert(hints[key], value, f"{prefix}{key}", where)
    return cls(**values)


def _convert(hint: Any, value: Any, key: str, where: str) -> Any:
    def wrong(wanted: str) -> UsageError:
        return UsageError(f"{where}: {key} = {_shown(value)}: must be {wanted}")

    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if hint is Source and isinstance(value, str | Path):
            return Source(str(value))
        return _build(hint, value, f"{key}.", where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        inner = next(item for item in typing.get_args(hint) if item is not type(None))
        return _convert(inner, value, key, where)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            tail = suggest(value, choices) if isinstance(value, str) else ""
            raise wrong(f"one of {', '.join(choices)}{'' if ';' in tail else tail}")
        return value
    if origin is Mapping:
        return _table(value, wrong)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, item, key, where) for item in _sequence(value, wrong))
    if hint is bool:
        return _bool(value, wrong)
    if hint is int:
        return _int(value, wrong)
    if hint is float:
        return _float(value, wrong)
    assert hint is str, hint
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        raise wrong("text in quotes")
    return value


def _sequence(value: Any, wrong: Any) -> Sequence[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise wrong('a list such as ["a", "b"]') from None
    elif isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Path | Mapping):
        return [value]
    if not isinstance(value, Sequence):
        raise wrong("a list")
    return value


def _table(value: Any, wrong: Any) -> dict[str, Any]:
    """A table with names of its own; what they may be, and their values, is for who reads it to say."""
    value = _parsed(value)
    if not isinstance(value, Mapping):
        raise wrong('a table such as { name = "value" }')
    return {str(name): item for name, item in value.items()}


def _parsed(value: Any) -> Any:
    """What was typed as JSON; other text stays text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _bool(value: Any, wrong: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise wrong("true or false")


def _int(value: Any, wrong: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value.replace("_", ""))
        except ValueError:
            raise wrong("a whole number") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong("a whole number")
    return value


def _float(value: Any, wrong: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong("a number")
    try:
        number = float(value)
    except ValueError:
        raise wrong("a number") from None
    if not math.isfinite(number):
        raise wrong("a finite number")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- to TOML ------------------------------------------------------------------------------------------------------


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        return text if any(mark in text for mark in ".en") else text + ".0"
    if isinstance(value, str):
        # A JSON string is a TOML basic string but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Source):
        items = [f"{f.name} = {_toml(getattr(value, f.name))}" for f in dataclasses.fields(value)
                 if getattr(value, f.name) is not None]  # fmt: skip
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    assert isinstance(value, tuple | list), value
    return "[" + ", ".join(_toml(item) for item in value) + "]"
