"""The files of a checkpoint that tell about its tokenizer, read as data.

Comes in: a folder. Goes out: ``TokenizerFiles``, holding only keys of an allow-list; everything else in these files
(``auto_map``, class names, paths) is never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whippet.errors import ModelError
from whippet.paths import within

MAX_TOKENIZER_BYTES = 256 * 1024**2
MAX_CONFIG_BYTES = 32 * 1024**2
MAX_TEMPLATE_BYTES = 1024**2
UNBOUNDED_LENGTH = 10**30


@dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint's files say, checked for type and nothing more."""

    folder: Path
    tokenizer_json: bytes
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    pad_id: int | None
    pad_where: Path
    """The file that names the padding token."""
    eos_ids: tuple[int, ...]
    added_tokens: dict[int, dict[str, Any]]
    chat_template: str | None
    model_max_length: int


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read them, or raise ModelError naming the file that is missing, too large or malformed."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder with a checkpoint")
    tokenizer_json = _read_bounded(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    if tokenizer_json is None:
        raise ModelError(f"{folder} has no tokenizer.json, which whippet needs to read its tokenizer")
    _check_model(folder / "tokenizer.json", tokenizer_json)
    config = _read_object(folder / "tokenizer_config.json")
    special = _read_object(folder / "special_tokens_map.json")
    model = _read_object(folder / "config.json")
    generation = _read_object(folder / "generation_config.json")

    def token(name: str) -> str | None:
        here = _token_text(config.get(name), f"{folder / 'tokenizer_config.json'}: {name}")
        return here or _token_text(special.get(name), f"{folder / 'special_tokens_map.json'}: {name}")

    pad_ids = [*_ids(generation.get("pad_token_id")), *_ids(model.get("pad_token_id"))]
    named_here = token("pad_token") is not None or not pad_ids
    named_where = "config.json" if _ids(model.get("pad_token_id")) else "generation_config.json"
    length = config.get("model_max_length")
    return TokenizerFiles(
        folder=folder,
        tokenizer_json=tokenizer_json,
        bos_token=token("bos_token"),
        eos_token=token("eos_token"),
        pad_token=token("pad_token"),
        unk_token=token("unk_token"),
        pad_id=next(iter(pad_ids), None),
        pad_where=folder / ("tokenizer_config.json" if named_here else named_where),
        eos_ids=(*_ids(generation.get("eos_token_id")), *_ids(model.get("eos_token_id"))),
        added_tokens=_added_tokens(config.get("added_tokens_decoder"), folder),
        chat_template=_chat_template(folder, config),
        model_max_length=int(length) if isinstance(length, int | float) and 0 < length < UNBOUNDED_LENGTH else 10**30,
    )


def _check_model(path: Path, raw: bytes) -> None:
    """Refuse what the tokenizers library does not survive: it cuts merges at the length of this prefix, unchecked,
    and ends the process. No byte-level or SentencePiece vocabulary has such a prefix."""
    model = _parse_object(path, raw).get("model")
    if isinstance(model, dict) and model.get("type") != "WordPiece" and model.get("continuing_subword_prefix"):
        raise ModelError(f"{path}: a BPE with continuing_subword_prefix is not supported")


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """``chat_template.jinja`` if there is one, else tokenizer_config's: a string or a list of named ones."""
    path = folder / "chat_template.jinja"
    raw = _read_bounded(path, MAX_TEMPLATE_BYTES)
    if raw is not None:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not UTF-8: {error}") from error
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    where = f"{folder / 'tokenizer_config.json'}: chat_template"
    if value is None:
        return None
    if isinstance(value, str):
        return _whole(value, where)
    raise ModelError(f"{where} is a {type(value).__name__}, wanted a text")


def _added_tokens(value: Any, folder: Path) -> dict[int, dict[str, Any]]:
    if value is None:
        return {}
    where = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    if not isinstance(value, dict):
        raise ModelError(f"{where} is a {type(value).__name__}, wanted a table of tokens by id")
    tokens: dict[int, dict[str, Any]] = {}
    for key, token in value.items():
        if not (str(key).isdecimal() and len(str(key)) < 10):
            raise ModelError(f"{where} has the key {str(key)[:40]!r}, wanted a token id")
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and token["content"]):
            raise ModelError(f"{where}.{key} has no content")
        _whole(token["content"], f"{where}.{key}.content")
        tokens[int(key)] = token
    return tokens


def _token_text(value: Any, where: str) -> str | None:
    """A special token is written as a text, or as a table with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return None
    if isinstance(value, str):
        return _whole(value, where) or None
    raise ModelError(f"{where} is {value!r:.60}, wanted the text of a special token")


def _whole(text: str, where: str) -> str:
    """``text``, refused if it cannot be UTF-8: the escapes of JSON can spell one half of a UTF-16 pair, which neither
    the tokenizers library nor a file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ModelError(f"{where} holds half of a UTF-16 pair, {half!r}, which is no character") from error
    return text


def _ids(value: Any) -> list[int]:
    """A token id or a list of them; anything else counts as absent."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool) and one >= 0]


def _read_object(path: Path) -> Mapping[str, Any]:
    raw = _read_bounded(path, MAX_CONFIG_BYTES)
    return {} if raw is None else _parse_object(path, raw)


def _parse_object(path: Path, raw: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error} ({len(raw)} bytes; is it truncated?)") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, wanted a JSON object")
    return value


def _read_bounded(path: Path, most: int) -> bytes | None:
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
