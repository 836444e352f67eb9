"""Small files of a checkpoint, read as data: never more than was bargained for, never from outside the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whippet.errors import ModelError
from whippet.paths import within

MAX_CONFIG_BYTES = 32 * 1024**2


def read_bounded(path: Path, most: int) -> bytes | None:
    """The file's content, None if it does not exist. A link that leads out of the folder is refused."""
    within(path.parent, path, error=ModelError)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"{path} is not a file")
        if size > most:
            raise ModelError(f"{path} has {size} bytes, wanted at most {most}")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def read_object(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file, empty if there is no file."""
    raw = read_bounded(path, MAX_CONFIG_BYTES)
    return {} if raw is None else parse_object(path, raw)


def parse_object(path: Path, raw: bytes) -> Mapping[str, Any]:
    """The JSON object in ``raw``, the content of ``path``."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error} ({len(raw)} bytes; is it truncated?)") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, wanted a JSON object")
    return value


def whole(text: str, where: str) -> str:
    """``text``, refused if it cannot be UTF-8: the escapes of JSON can spell one half of a UTF-16 pair, which neither
    the tokenizers library nor a file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ModelError(f"{where} holds half of a UTF-16 pair, {half!r}, which is no character") from error
    return text
