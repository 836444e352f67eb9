"""SentencePiece's ``tokenizer.model`` (Llama 2, Mistral, Gemma): what the file says.

Comes in: its bytes. Goes out: ``Model``, which ``sentencepiece_json.py`` turns into a tokenizer. The fields are those
of sentencepiece_model.proto; what cannot be carried over is refused, never left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from tokenizers.normalizers import Precompiled

from whippet.chat import protobuf
from whippet.chat.tokenizer_json import Special
from whippet.errors import ModelError

UNIGRAM, BPE = 1, 2
MODEL_TYPES = {3: "word", 4: "char"}
MAX_PIECES = 1 << 20
MAX_PIECE = 256


class Kind(IntEnum):
    """What a piece is (``SentencePiece.Type``)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SUPPORTED = frozenset(Kind) - {Kind.UNUSED}


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: Kind


@dataclass
class Model:
    """What the file says; the defaults are those of the format.

    pieces by id. unknown, bos, eos, pad: ids, negative for none. charsmap: rules of normalisation, compiled into a
    double-array trie and its texts; empty for none. squeezes: whether runs of spaces become one and outer ones go.
    """

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    unknown: int = 0
    bos: int = 1
    eos: int = 2
    pad: int = -1
    charsmap: bytes = b""
    adds_dummy_prefix: bool = True
    squeezes: bool = True

    @property
    def user_defined(self) -> list[Piece]:
        """The pieces that always come out whole."""
        return [piece for piece in self.pieces if piece.kind == Kind.USER_DEFINED]

    @property
    def splits(self) -> bool:
        """Whether user-defined pieces are cut out of the text where it is split into words. A BPE does so before it
        merges; they may be added tokens instead, if no dummy prefix would come between."""
        return self.model_type == BPE and self.adds_dummy_prefix

    def special(self, token_id: int) -> Special | None:
        """The piece ``token_id`` as text and id, None if it is negative."""
        return (self.pieces[token_id].text, token_id) if token_id >= 0 else None


def read_model(raw: bytes, where: str) -> Model:
    """The model in ``raw``; ModelError names ``where`` if it is damaged or of a make that is not supported."""
    model = Model()
    for number, value in protobuf.fields(raw, where):
        if number == 1:
            model.pieces.append(_piece(protobuf.message(value, where), len(model.pieces), where))
            if len(model.pieces) > MAX_PIECES:
                raise ModelError(f"{where} has more than {MAX_PIECES:,} pieces")
        elif number == 2:
            _read_trainer(model, protobuf.message(value, where), where)
        elif number == 3:
            _read_normalizer(model, protobuf.message(value, where), where)
        elif number == 5 and any(rules == 2 for rules, _ in protobuf.fields(protobuf.message(value, where), where)):
            raise ModelError(f"{where}: rules of denormalisation are not supported")
    _check(model, where)
    return model


def _piece(raw: bytes, place: int, where: str) -> Piece:
    where = f"{where}: piece {place}"
    text, score, kind = "", 0.0, int(Kind.NORMAL)
    for number, value in protobuf.fields(raw, where):
        if number == 1:
            text = protobuf.text(value, where)
        elif number == 2:
            score = protobuf.float32(value, where)
        elif number == 3:
            kind = protobuf.number(value, where)
    if not text or len(text) > MAX_PIECE:
        raise ModelError(f"{where} has {len(text)} characters, wanted 1 to {MAX_PIECE}")
    if not math.isfinite(score):
        raise ModelError(f"{where} ({text[:40]!r}) has the score {score}")
    if kind not in SUPPORTED:
        raise ModelError(f"{where} ({text[:40]!r}) is of type {kind}, which is not supported")
    return Piece(text, score, Kind(kind))


def _read_trainer(model: Model, raw: bytes, where: str) -> None:
    for number, value in protobuf.fields(raw, where):
        if number == 3:
            model.model_type = protobuf.number(value, where)
        elif number == 24 and protobuf.number(value, where):
            raise ModelError(f"{where}: treat_whitespace_as_suffix is not supported")
        elif number == 35:
            model.byte_fallback = bool(protobuf.number(value, where))
        elif number == 40:
            model.unknown = protobuf.number(value, where)
        elif number == 41:
            model.bos = protobuf.number(value, where)
        elif number == 42:
            model.eos = protobuf.number(value, where)
        elif number == 43:
            model.pad = protobuf.number(value, where)


def _read_normalizer(model: Model, raw: bytes, where: str) -> None:
    for number, value in protobuf.fields(raw, where):
        if number == 2:
            model.charsmap = protobuf.message(value, where)
        elif number == 3:
            model.adds_dummy_prefix = bool(protobuf.number(value, where))
        elif number == 4:
            model.squeezes = bool(protobuf.number(value, where))
        elif number == 5 and not protobuf.number(value, where):
            raise ModelError(f"{where}: a model that does not escape spaces is not supported")


def _check(model: Model, where: str) -> None:
    """Raise ModelError for what would give other ids than SentencePiece, or make the library fail later."""
    if not model.pieces:
        raise ModelError(f"{where} holds no pieces, so it is no SentencePiece model")
    if model.model_type not in (UNIGRAM, BPE):
        kind = MODEL_TYPES.get(model.model_type, model.model_type)
        raise ModelError(f"{where}: SentencePiece models of type {kind} are not supported, wanted bpe or unigram")
    seen: dict[str, int] = {}
    for token_id, piece in enumerate(model.pieces):
        if seen.setdefault(piece.text, token_id) != token_id:
            raise ModelError(f"{where}: pieces {seen[piece.text]} and {token_id} are both {piece.text[:40]!r}")
    unknown = [token_id for token_id, piece in enumerate(model.pieces) if piece.kind == Kind.UNKNOWN]
    if unknown != [model.unknown]:
        raise ModelError(f"{where}: pieces {unknown[:5]} are of the unknown kind, wanted just {model.unknown}")
    spelt = {piece.text for piece in model.pieces if piece.kind == Kind.BYTE}
    if model.byte_fallback and spelt != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise ModelError(f"{where}: byte fallback wants the 256 pieces <0x00> to <0xFF>, {len(spelt)} are there")
    for name, token_id in (("bos", model.bos), ("eos", model.eos), ("pad", model.pad)):
        if token_id >= len(model.pieces):
            raise ModelError(f"{where}: {name}_id is {token_id}, but there are {len(model.pieces)} pieces")
    if model.charsmap:
        _check_charsmap(model.charsmap, where)
    rules = Precompiled(model.charsmap) if model.charsmap else None
    for piece in model.user_defined:
        # SentencePiece shields them from normalisation, which the library cannot.
        seen_as = rules.normalize_str(piece.text) if rules is not None else piece.text
        if seen_as != piece.text or (model.squeezes and " " in piece.text):
            raise ModelError(f"{where}: its rules of normalisation change the user-defined piece {piece.text[:40]!r}")


def _check_charsmap(raw: bytes, where: str) -> None:
    """The library follows the trie without looking where it leads. A unit's children lie in the block of 256 units
    around its place xor its offset; a leaf holds where its text begins. Format: github.com/s-yata/darts-clone."""
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 or size == 0 or size % 1024 or size > len(raw) - 4:
        raise ModelError(f"{where} is damaged: its normalisation trie says {size} bytes of {len(raw)}")
    units = np.frombuffer(raw, dtype="<u4", offset=4, count=size // 4).astype(np.int64)
    leaf = units >> 31 == 1
    children = np.arange(len(units)) ^ ((units >> 10) << ((units & (1 << 9)) >> 6))
    begins = units[leaf] & 0x7FFF_FFFF
    texts = len(raw) - 4 - size
    if (children[~leaf] | 0xFF).max(initial=0) >= len(units) or begins.max(initial=-1) >= texts:
        raise ModelError(f"{where} is damaged: its normalisation trie leads out of the file")
    try:
        raw[4 + size :].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{where} is damaged: its normalised texts are not UTF-8") from error
