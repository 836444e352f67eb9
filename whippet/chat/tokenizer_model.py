"""Meta's and Mistral's ``tokenizer.model``, of either make, for checkpoints that have no ``tokenizer.json``.

Comes in: the file's bytes and what tokenizer_config.json says. Goes out: ``Converted``, the same tokenizer as a
``tokenizer.json``, which the rest of whippet reads, saves and exports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whippet.chat import sentencepiece, sentencepiece_json, tiktoken
from whippet.errors import ModelError

MAX_MODEL_BYTES = 16 * 1024**2
NAMES = ("tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1")
"""In the order that they are looked for. Those with a number are Mistral's own."""


@dataclass(frozen=True)
class Converted:
    """tokenizer_json: the tokenizer as the ``tokenizers`` library reads it. The special tokens are what the file calls
    so, None where it has none; turn_ends are further ones that end a reply."""

    tokenizer_json: bytes
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    turn_ends: tuple[str, ...] = ()


def convert(path: Path, raw: bytes, config: Mapping[str, Any], names: Mapping[int, str]) -> Converted:
    """The tokenizer in ``raw``, the bytes of ``path``; ModelError if it is of neither make, damaged or not supported.

    config: of ``tokenizer_config.json``, the keys ``add_bos_token`` (by default true), ``add_eos_token`` (false) and
    ``legacy`` (see ``sentencepiece_json.as_tokenizer_json``; by default true but for Mistral's own files, whose chats
    are written for false). names: its added tokens by id.
    """
    adds_bos = flag(path, config, "add_bos_token", True)
    adds_eos = flag(path, config, "add_eos_token", False)
    if tiktoken.looks_like_ranks(raw):
        value = tiktoken.as_tokenizer_json(raw, names, str(path), adds_bos=adds_bos, adds_eos=adds_eos)
        held = {token["content"] for token in value["added_tokens"]}
        bos, eos = (name if name in held else None for name in (tiktoken.BOS, tiktoken.EOS))
        ends = tuple(name for name in tiktoken.TURN_ENDS if name in held)
        return Converted(_bytes(value), bos, eos, None, None, ends)
    model = sentencepiece.read_model(raw, str(path))
    legacy = flag(path, config, "legacy", path.name == NAMES[0])
    value = sentencepiece_json.as_tokenizer_json(model, adds_bos=adds_bos, adds_eos=adds_eos, prefixes_parts=legacy)
    special = [model.special(token_id) for token_id in (model.bos, model.eos, model.pad, model.unknown)]
    bos, eos, pad, unk = (None if token is None else token[0] for token in special)
    return Converted(_bytes(value), bos, eos, pad, unk)


def flag(path: Path, config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A key of tokenizer_config.json beside ``path`` that is true or false; null counts as absent."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{path.parent / 'tokenizer_config.json'}: {key} is {value!r:.60}, wanted true or false")
    return default if value is None else value


def _bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8")
