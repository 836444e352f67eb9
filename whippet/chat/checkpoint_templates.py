"""The chat templates of a checkpoint: the one that counts, and others that it has under names of their own.

Comes in: a folder and its tokenizer_config.json. Goes out: sources by name; ``default`` is used unless another is asked
for, and ``tool_use`` in its place for conversations with tools, as transformers does. They lie in files
(``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja``) or under ``chat_template`` in
tokenizer_config.json, as a text or as a list of names and templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whippet.chat.text_files import read_bounded, whole
from whippet.errors import ModelError
from whippet.paths import within

MAX_TEMPLATE_BYTES = 1024**2
MAX_TEMPLATES = 100
DEFAULT, WITH_TOOLS = "default", "tool_use"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""What can be the name of a file everywhere, because that is what it becomes when the checkpoint is saved."""
FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"


def read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Sources by name; ModelError names the file and key that are wrong.

    If there is any file, the files are all there is: an exporter writes the same into both places, and what is left in
    the configuration is older.
    """
    found: dict[str, str] = {}
    own = _read(folder / FILE)
    if own is not None:
        found[DEFAULT] = own
    place = within(folder, folder / FOLDER, error=ModelError)
    paths = sorted(place.glob("*.jinja")) if place.is_dir() else []
    if len(paths) > MAX_TEMPLATES:
        raise ModelError(f"{place} holds {len(paths)} templates, wanted at most {MAX_TEMPLATES}")
    for path in paths:
        source = _read(path)
        if source is not None:
            found[path.stem] = source
    return found or _configured(config.get("chat_template"), f"{folder / 'tokenizer_config.json'}: chat_template")


def _read(path: Path) -> str | None:
    raw = read_bounded(path, MAX_TEMPLATE_BYTES)
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8: {error}") from error


def _configured(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: whole(value, where)}
    if not isinstance(value, list):
        raise ModelError(f"{where} is a {type(value).__name__}, wanted a text, or a list of names and templates")
    found: dict[str, str] = {}
    for place, entry in enumerate(value):
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(name, str) and PLAIN_NAME.fullmatch(name)) or not isinstance(source, str):
            raise ModelError(f"{where}, entry {place}: wanted a table with a plain 'name' and a text 'template'")
        found[name] = whole(source, f"{where}, {name!r:.60}")
    return found
