"""The files of a checkpoint that tell about its tokenizer, read as data.

Comes in: a folder. Goes out: ``TokenizerFiles``, holding only keys of an allow-list; everything else in these files
(``auto_map``, class names, paths) is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whippet.chat.checkpoint_templates import read_templates
from whippet.chat.text_files import parse_object, read_bounded, read_object, whole
from whippet.chat.tokenizer_model import MAX_MODEL_BYTES, NAMES, Converted, convert, flag
from whippet.errors import ModelError

MAX_TOKENIZER_BYTES = 256 * 1024**2
UNBOUNDED_LENGTH = 10**30


@dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint's files say, checked for type and nothing more."""

    folder: Path
    source: Path
    """The file that holds the vocabulary."""
    tokenizer_json: bytes
    """That file, or what a ``tokenizer.model`` was turned into."""
    adds_bos: bool | None
    adds_eos: bool | None
    """Whether BOS goes before a text and EOS after it; None leaves that to ``tokenizer_json``."""
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    pad_id: int | None
    pad_where: Path
    """The file that names the padding token."""
    eos_ids: tuple[int, ...]
    turn_ends: tuple[str, ...]
    """Further tokens that end a reply, where no configuration tells any."""
    added_tokens: dict[int, dict[str, Any]]
    templates: dict[str, str]
    """Chat templates by name (``checkpoint_templates.py``)."""
    model_max_length: int


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read them, or raise ModelError naming the file that is missing, too large or malformed."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder with a checkpoint")
    config = read_object(folder / "tokenizer_config.json")
    added_tokens = _added_tokens(config.get("added_tokens_decoder"), folder)
    source, tokenizer_json, converted = _vocabulary(folder, config, added_tokens)
    special = read_object(folder / "special_tokens_map.json")
    model = read_object(folder / "config.json")
    generation = read_object(folder / "generation_config.json")

    def token(name: str) -> str | None:
        here = _token_text(config.get(name), f"{folder / 'tokenizer_config.json'}: {name}")
        there = _token_text(special.get(name), f"{folder / 'special_tokens_map.json'}: {name}")
        return here or there or (getattr(converted, name) if converted is not None else None)

    pad_ids = [*_ids(generation.get("pad_token_id")), *_ids(model.get("pad_token_id"))]
    named_here = token("pad_token") is not None or not pad_ids
    named_where = "config.json" if _ids(model.get("pad_token_id")) else "generation_config.json"
    length = config.get("model_max_length")
    eos_ids = (*_ids(generation.get("eos_token_id")), *_ids(model.get("eos_token_id")))

    def adds(key: str) -> bool | None:
        told = converted is None and config.get(key) is not None
        return flag(source, config, key, False) if told else None

    return TokenizerFiles(
        folder=folder,
        source=source,
        tokenizer_json=tokenizer_json,
        adds_bos=adds("add_bos_token"),
        adds_eos=adds("add_eos_token"),
        bos_token=token("bos_token"),
        eos_token=token("eos_token"),
        pad_token=token("pad_token"),
        unk_token=token("unk_token"),
        pad_id=next(iter(pad_ids), None),
        pad_where=folder / ("tokenizer_config.json" if named_here else named_where),
        eos_ids=eos_ids,
        turn_ends=converted.turn_ends if converted is not None and not eos_ids else (),
        added_tokens=added_tokens,
        templates=read_templates(folder, config),
        model_max_length=int(length) if isinstance(length, int | float) and 0 < length < UNBOUNDED_LENGTH else 10**30,
    )


def _vocabulary(
    folder: Path, config: Mapping[str, Any], added: Mapping[int, Mapping[str, Any]]
) -> tuple[Path, bytes, Converted | None]:
    """The file that holds the vocabulary, as a tokenizer.json. That file counts if there is one, else a
    ``tokenizer.model`` does."""
    path = folder / "tokenizer.json"
    raw = read_bounded(path, MAX_TOKENIZER_BYTES)
    if raw is not None:
        _check_model(path, raw)
        return path, raw, None
    for name in NAMES:
        raw = read_bounded(folder / name, MAX_MODEL_BYTES)
        if raw is not None:
            names = {token_id: str(token["content"]) for token_id, token in added.items()}
            converted = convert(folder / name, raw, config, names)
            return folder / name, converted.tokenizer_json, converted
    raise ModelError(f"{folder} has no tokenizer.json and no tokenizer.model, one of which whippet needs")


def _check_model(path: Path, raw: bytes) -> None:
    """Refuse what the tokenizers library does not survive: it cuts merges at the length of this prefix, unchecked,
    and ends the process. No byte-level or SentencePiece vocabulary has such a prefix."""
    model = parse_object(path, raw).get("model")
    if isinstance(model, dict) and model.get("type") != "WordPiece" and model.get("continuing_subword_prefix"):
        raise ModelError(f"{path}: a BPE with continuing_subword_prefix is not supported")


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
        whole(token["content"], f"{where}.{key}.content")
        tokens[int(key)] = token
    return tokens


def _token_text(value: Any, where: str) -> str | None:
    """A special token is written as a text, or as a table with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return None
    if isinstance(value, str):
        return whole(value, where) or None
    raise ModelError(f"{where} is {value!r:.60}, wanted the text of a special token")


def _ids(value: Any) -> list[int]:
    """A token id or a list of them; anything else counts as absent."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool) and one >= 0]
