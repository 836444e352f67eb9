"""What a person means by MODEL: a checkpoint, a run of ours, or an adapter; and where its parts lie.

Comes in: a folder or a hub id. Goes out: ``Located``, with the base checkpoint, the adapter over it if there is one,
and what the run's recipe says about base and template. Nothing is downloaded here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from whippet.errors import ModelError, UsageError
from whippet.options import Base
from whippet.paths import within

RECIPE = "recipe.toml"
ADAPTER = "adapter"
MERGED = "model"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Located:
    """The parts of a model."""

    base: str
    """Folder or hub id of the checkpoint."""
    revision: str
    adapter: Path | None = None
    stored_as: Base = "auto"
    """How the run that made the adapter held the base; ``auto`` where that is not known."""
    template: str | None = None
    """The template of the run, by name or file; None for the checkpoint's own."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """What the run tells it besides the chat."""


def locate(model: str | Path, *, adapter: str | Path | None = None, revision: str = "main") -> Located:
    """Find the parts of ``model``; ``adapter`` is a folder in PEFT's layout to lay over it.

    UsageError if ``model`` is a run that has not finished, or holds an adapter and another one is asked for;
    ModelError if a recipe or an adapter's configuration cannot be read.
    """
    folder = Path(model)
    found = Located(str(model), revision)
    if (folder / RECIPE).is_file():
        found = _run(folder)
    elif (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        found = _adapter(folder)
    elif folder.is_dir() and not (folder / "config.json").is_file():
        from whippet.weights.meta import is_meta  # torch comes with it

        if is_meta(folder):
            raise UsageError(f"{folder}: Meta's original layout; run: whippet convert {folder} --out DIR")
        raise UsageError(
            f"{folder} is no model: it has neither config.json (a checkpoint), {RECIPE} (a run) nor {ADAPTER_CONFIG} "
            f"(an adapter)"
        )
    if adapter is None:
        return found
    if found.adapter is not None:
        raise UsageError(f"{model} has an adapter of its own, {found.adapter}; give its base with --adapter {adapter}")
    if not (Path(adapter) / ADAPTER_CONFIG).is_file():
        raise UsageError(f"{adapter} is no adapter: it has no {ADAPTER_CONFIG}")
    template = found.template or _own_template(adapter)
    return replace(found, adapter=Path(adapter), template=template)


def _run(folder: Path) -> Located:
    """A run's folder: its finished adapter over its base, or its finished checkpoint after full fine-tuning."""
    path = within(folder, folder / RECIPE, error=ModelError)
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not a TOML recipe: {error}") from error
    model, data = _table(recipe, "model", path), _table(recipe, "data", path)
    template, told = _text(data, "template", path), _table(data, "template_variables", path)
    if (folder / MERGED / "config.json").is_file():
        return Located(str(folder / MERGED), "main", template=template, template_variables=told)
    if not (folder / ADAPTER / ADAPTER_CONFIG).is_file():
        raise UsageError(f"{folder} has no {ADAPTER}/ yet: its run has not finished. Run the same command to go on")
    base = _text(model, "path", path)
    if not base:
        raise ModelError(f"{path}: model.path is missing, so the adapter's base is unknown")
    revision = _text(model, "revision", path) or "main"
    return Located(base, revision, folder / ADAPTER, _stored_as(_text(model, "base", path), path), template, told)


def _adapter(folder: Path) -> Located:
    path = within(folder, folder / ADAPTER_CONFIG, error=ModelError)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, wanted a JSON object")
    base = _text(config, "base_model_name_or_path", path)
    if not base:
        raise ModelError(f"{path} names no base_model_name_or_path; give the base with --adapter {folder}")
    return Located(base, _text(config, "revision", path) or "main", folder, template=_own_template(folder))


def _stored_as(base: str | None, path: Path) -> Base:
    """For a run that trains an adapter, ``auto`` meant 4 bit (options.py)."""
    if base in (None, "auto"):
        return "nf4"
    known = {name: name for name in get_args(Base)}
    if base not in known:
        raise ModelError(f"{path}: model.base is {base!r:.60}, wanted one of {', '.join(known)}")
    return known[base]


def _own_template(adapter: str | Path) -> str | None:
    """The template that was saved beside an adapter."""
    path = within(Path(adapter), Path(adapter) / "chat_template.jinja", error=ModelError)
    return str(path) if path.is_file() else None


def _table(recipe: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    table = recipe.get(name, {})
    if not isinstance(table, dict):
        raise ModelError(f"{path}: [{name}] is {table!r:.60}, wanted a table")
    return table


def _text(table: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{path}: {key} is {value!r:.60}, wanted a text")
    return value
