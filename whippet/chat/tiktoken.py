"""Llama 3's ``tokenizer.model``, a tiktoken file of ranks, as a ``tokenizer.json`` that gives the same ids.

Comes in: the file's bytes, a line a token: its bytes in base64 and its rank, which is its id. Goes out: JSON for the
``tokenizers`` library. The file holds neither the expression that splits text into words nor the 256 special tokens
that follow; both are Llama 3's, so a file with another number of ranks is refused.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from whippet.chat.tokenizer_json import added_token, post_processor
from whippet.errors import ModelError

NUM_RANKS, NUM_SPECIAL = 128_000, 256
MAX_TOKEN_BYTES = 256
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 splits text before it merges (llama-models, models/llama3/tokenizer.py)."""
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
TURN_ENDS = ("<|eom_id|>", "<|eot_id|>")
NAMED = (BOS, EOS, None, None, "<|finetune_right_pad_id|>", None, "<|start_header_id|>", "<|end_header_id|>",
         "<|eom_id|>", "<|eot_id|>", "<|python_tag|>")  # fmt: skip
"""The special tokens from id 128000 on, as named since Llama 3.1; the others are reserved and numbered in order."""


def looks_like_ranks(raw: bytes) -> bool:
    """Whether ``raw`` begins as a file of ranks does: text in base64, a space, a number."""
    token, space, rank = raw[: 2 * MAX_TOKEN_BYTES].partition(b"\n")[0].rstrip(b"\r").partition(b" ")
    return bool(space) and rank.isdigit() and _decoded(token) is not None


def special_names(given: Mapping[int, str]) -> list[str]:
    """The 256 special tokens in order. ``given``: by id, what the checkpoint's tokenizer_config.json calls them."""
    reserved = iter(range(NUM_SPECIAL))
    known = [*NAMED, *([None] * (NUM_SPECIAL - len(NAMED)))]
    names = [name if name is not None else f"<|reserved_special_token_{next(reserved)}|>" for name in known]
    return [given.get(NUM_RANKS + place, name) for place, name in enumerate(names)]


def as_tokenizer_json(
    raw: bytes, given: Mapping[int, str], where: str, *, adds_bos: bool, adds_eos: bool
) -> dict[str, Any]:
    """The tokenizer of the ranks in ``raw``; ModelError names ``where`` and the line that is wrong."""
    ranks = read_ranks(raw, where)
    if len(ranks) != NUM_RANKS:
        raise ModelError(f"{where} has {len(ranks):,} ranks, wanted Llama 3's {NUM_RANKS:,}: no other make is known")
    names = special_names(given)
    if len(set(names)) != len(names):
        raise ModelError(f"{where}: tokenizer_config.json names two of its special tokens alike")
    ids = {name: NUM_RANKS + place for place, name in enumerate(names)}
    bos = (BOS, ids[BOS]) if adds_bos and BOS in ids else None
    eos = (EOS, ids[EOS]) if adds_eos and EOS in ids else None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token_id, name) for name, token_id in ids.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": post_processor(bos, eos),
        "decoder": byte_level,
        "model": _bpe(ranks),
    }


def read_ranks(raw: bytes, where: str) -> dict[bytes, int]:
    """Rank by token, in order from 0."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        encoded, _, rank = line.partition(b" ")
        token = _decoded(encoded)
        if not token or len(token) > MAX_TOKEN_BYTES or token in ranks or rank != str(len(ranks)).encode():
            raise ModelError(
                f"{where}, line {number}: {line[:60]!r}, wanted a new token of 1 to {MAX_TOKEN_BYTES} bytes in base64 "
                f"and its rank, {len(ranks)}"
            )
        ranks[token] = len(ranks)
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing:
        raise ModelError(f"{where}: {missing} of the 256 bytes are no tokens")
    return ranks


def _decoded(encoded: bytes) -> bytes | None:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None


def _bpe(ranks: Mapping[bytes, int]) -> dict[str, Any]:
    """tiktoken merges the neighbours that together have the lowest rank, and takes a whole word that has one as it is.
    Bytes are written as GPT-2's byte-level vocabularies write them."""
    letters = byte_letters()
    written = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    merges: list[list[str]] = []
    for token in ranks:
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        found = [(ranks[left], ranks[right], left, right) for left, right in halves if left in ranks and right in ranks]
        merges += [[written[left], written[right]] for _, _, left, right in sorted(found)]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {written[token]: rank for token, rank in ranks.items()},
        "merges": merges,
    }


def byte_letters() -> list[str]:
    """The letter for each byte: itself where it prints, else the next one from U+0100 on."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in prints else next(spare)) for byte in range(256)]
