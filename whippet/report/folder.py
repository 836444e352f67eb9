"""A run's folder as facts: what the card and the page are written from.

Comes in: ``recipe.toml`` and, as far as they are there, ``metrics.jsonl``, ``plan.json``, ``data.json``,
``environment.json``, ``samples.jsonl`` and ``energy.jsonl``. Goes out: ``RunFacts``. Only files of the folder are read,
never the machine's environment, so nothing secret can get into what is written from them.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from whippet.errors import UsageError
from whippet.paths import within
from whippet.report.metrics import Record, read_metrics

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
DATA_SUFFIXES = {".json", ".jsonl", ".csv", ".parquet", ".txt", ".md", ".gz", ".arrow", ".zst"}
LINKED = (
    "README.md", "recipe.toml", "metrics.jsonl", "plan.json", "data.json", "loss.png", "adapter", "model", "checkpoints"
)  # fmt: skip
"""What a page in the folder links to, where it exists."""


@dataclass(frozen=True)
class RunFacts:
    """What a run's folder tells. Mappings are as their files hold them."""

    folder: Path
    recipe: Mapping[str, Any]
    """The tables of ``recipe.toml``."""
    records: tuple[Record, ...] = ()
    plan: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    """The data report: format, counts, tokens, refused rows."""
    environment: Mapping[str, Any] | None = None
    """Versions, device, seconds: what the run wrote about itself."""
    samples: tuple[Mapping[str, Any], ...] = ()
    """``step``, ``prompt``, ``text`` of each sample generation."""
    energy: tuple[Mapping[str, Any], ...] = ()
    """What ``meter.py`` read."""
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.folder.name

    def table(self, name: str) -> Mapping[str, Any]:
        """A table of the recipe, empty if it has none."""
        table = self.recipe.get(name, {})
        return table if isinstance(table, Mapping) else {}

    @property
    def sources(self) -> tuple[Mapping[str, Any], ...]:
        """``path``, ``weight`` and ``format`` of each source of data."""
        listed = self.table("data").get("sources", [])
        return tuple(source if isinstance(source, Mapping) else {"path": str(source)} for source in listed)


def read_run(folder: Path) -> RunFacts:
    """The facts of the run in ``folder``. Raises UsageError naming the file that cannot be read, or that is a link out
    of the folder."""
    for name in (*LINKED, "environment.json", "samples.jsonl", "energy.jsonl"):
        within(folder, folder / name)
    path = folder / "recipe.toml"
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a run's recipe: {error}") from error
    metrics = folder / "metrics.jsonl"
    return RunFacts(
        folder=folder.absolute(),
        recipe=recipe,
        records=tuple(read_metrics(metrics)) if metrics.is_file() else (),
        plan=_object(folder / "plan.json"),
        data=_object(folder / "data.json"),
        environment=_object(folder / "environment.json"),
        samples=_lines(folder / "samples.jsonl"),
        energy=_lines(folder / "energy.jsonl"),
        files=tuple(name for name in LINKED if (folder / name).exists()),
    )


def is_hub_id(path: str) -> bool:
    """Whether a recipe's path means something on the hub: two plain words and nothing of that name here."""
    return bool(HUB_ID.fullmatch(path)) and PurePath(path).suffix not in DATA_SUFFIXES and not Path(path).exists()


def public_name(path: str) -> str:
    """What may be told about where something lies: a hub id whole, of anything else the last part."""
    return path if is_hub_id(path) else PurePath(path.replace("\\", "/")).name or path


def _object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = _parsed(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds a JSON {type(value).__name__}; wanted an object")
    return value


def _lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Whole lines; a last one without its end was cut short by a crash."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    values = [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line]
    return tuple(value for value in values if isinstance(value, dict))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON: {error}") from error
