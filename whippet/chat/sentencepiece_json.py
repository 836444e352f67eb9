"""A SentencePiece model as a ``tokenizer.json``, with which the ``tokenizers`` library gives the same ids.

Comes in: ``sentencepiece.Model``. Goes out: the JSON. Control pieces are recognised in text, as everywhere in whippet
and unlike SentencePiece, which keeps them for its caller to insert.
"""

from __future__ import annotations

import base64
import itertools
from typing import Any

from whippet.chat.sentencepiece import BPE, UNIGRAM, Kind, Model
from whippet.chat.tokenizer_json import added_token, post_processor

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space within a piece."""
USER_DEFINED_SCORE = -0.1


def as_tokenizer_json(model: Model, *, adds_bos: bool, adds_eos: bool, prefixes_parts: bool) -> dict[str, Any]:
    """``model`` in the format of the ``tokenizers`` library.

    Special tokens cut a text into parts. ``prefixes_parts``: the dummy prefix (a space before the text, so that a word
    is the same piece everywhere) goes before each part, as if each had been encoded by itself; otherwise before the
    text only, and not if that begins with a space. This is ``legacy`` in tokenizer_config.json.
    """
    special = {Kind.UNKNOWN, Kind.CONTROL}
    added = [
        added_token(token_id, piece.text, special=piece.kind in special, normalized=piece.kind not in special)
        for token_id, piece in enumerate(model.pieces)
        if piece.kind in special or (piece.kind == Kind.USER_DEFINED and model.model_type == BPE and not model.splits)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(model, prefixes_parts),
        "pre_tokenizer": _pre_tokenizer(model, prefixes_parts),
        "post_processor": post_processor(
            model.special(model.bos) if adds_bos else None, model.special(model.eos) if adds_eos else None
        ),
        "decoder": _decoder(model),
        "model": _unigram(model) if model.model_type == UNIGRAM else _bpe(model),
    }


def _normalizer(model: Model, prefixes_parts: bool) -> dict[str, Any] | None:
    """In SentencePiece's order: the rules, the spaces, the prefix, the escape, the spaces at the end."""
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode("ascii")})
    if model.squeezes:
        steps += [_replaced(r"\A +", ""), _replaced(" {2,}", " ")]
    if model.adds_dummy_prefix and prefixes_parts:
        steps.append({"type": "Prepend", "prepend": SPACE})
    if prefixes_parts or not model.adds_dummy_prefix:  # else Metaspace does it, after the prefix
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if model.squeezes:
        steps.append(_replaced(rf"[ {SPACE}]+\z", ""))
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _replaced(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _pre_tokenizer(model: Model, prefixes_parts: bool) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if model.adds_dummy_prefix and not prefixes_parts:
        steps.append({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False})
    user_defined = [piece.text for piece in model.user_defined]
    if user_defined and model.splits:
        # Longest first, as SentencePiece looks for them.
        texts = "|".join(map(_quoted, sorted(user_defined, key=len, reverse=True)))
        steps.append({"type": "Split", "pattern": {"Regex": texts}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else next(iter(steps), None)


def _quoted(text: str) -> str:
    """``text`` for the library's regular expressions."""
    return "".join(letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)


def _decoder(model: Model) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.adds_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: Model) -> dict[str, Any]:
    """The best sum of scores (logarithms of probabilities) wins. SentencePiece counts a user-defined piece as almost
    certain. Unlike it, the library takes ``<0x41>`` in a text for the piece of that byte."""
    scores = {Kind.USER_DEFINED: USER_DEFINED_SCORE}
    vocab = [[piece.text, scores.get(piece.kind, piece.score)] for piece in model.pieces]
    return {"type": "Unigram", "unk_id": model.unknown, "vocab": vocab, "byte_fallback": model.byte_fallback}


def _bpe(model: Model) -> dict[str, Any]:
    """Two neighbours merge if together they are a normal piece, the best score first. User-defined pieces, which were
    cut out of the text, are taken whole because nothing merges into them."""
    vocab = {piece.text: token_id for token_id, piece in enumerate(model.pieces)}
    normal = {piece.text for piece in model.pieces if piece.kind == Kind.NORMAL}
    best = sorted(range(len(model.pieces)), key=lambda token_id: (-model.pieces[token_id].score, token_id))
    wanted = itertools.chain.from_iterable(_halves(model.pieces[token_id].text, normal) for token_id in best)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unknown].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": model.splits and bool(model.user_defined),
        "vocab": vocab,
        "merges": list(wanted),
    }


def _halves(text: str, normal: set[str]) -> list[list[str]]:
    """The ways to put a normal piece together from two."""
    if text not in normal:
        return []
    pairs = ([text[:cut], text[cut:]] for cut in range(1, len(text)))
    return [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
