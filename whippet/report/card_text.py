"""Markdown that nothing from outside can break: escaped text, tables, values as people read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whippet.report.figures import short
from whippet.report.folder import public_name


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells may hold anything."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text that markdown shows as it stands: no tags, no links, no pictures, no code."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`*\[\]<>!#|])", r"\\\1", shown).replace("\\|", "|")


def line(value: Any, most: int = 600) -> str:
    """Any value on one line, cut after ``most`` characters."""
    text = " ".join(str(value).split())
    return plain(text if len(text) <= most else text[: most - 1] + "…")


def figure(value: Any) -> str:
    """A figure of a report."""
    if isinstance(value, str | bool):
        return plain(str(value))
    return f"{value:,}" if isinstance(value, int) else short(value)


def shown(value: Any) -> str:
    """A value of a recipe."""
    if isinstance(value, list | tuple):
        return plain(", ".join(str(item) for item in value))
    if isinstance(value, Mapping):
        return plain(", ".join(f"{name} = {json.dumps(item, ensure_ascii=False)}" for name, item in value.items()))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return plain(public_name(value) if value else "–")
    return short(float(value)) if isinstance(value, int | float) else plain(str(value))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
