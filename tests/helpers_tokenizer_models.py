"""Files of the kind ``tokenizer.model``, written by hand, and texts that try tokenizers."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Piece = tuple[str, float, int]


def varint(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def part(number: int, value: int | float | bytes | str) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode("utf-8") if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def sentencepiece_file(
    pieces: Sequence[Piece],
    trainer: dict[int, int] | None = None,
    normalizer: dict[int, int | bytes] | None = None,
    more: bytes = b"",
) -> bytes:
    """A SentencePiece model; by default a BPE with dummy prefix that leaves spaces alone."""
    held = [part(1, part(1, text) + part(2, score) + part(3, kind)) for text, score, kind in pieces]
    settings = {3: 2} | (trainer or {})
    rules: dict[int, int | bytes] = {4: 0} | (normalizer or {})
    held += [part(2, b"".join(part(number, value) for number, value in settings.items()))]
    held += [part(3, b"".join(part(number, value) for number, value in rules.items()))]
    return b"".join(held) + more


SMALL: list[Piece] = [
    ("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("▁a", -1.0, NORMAL), ("ab", -2.0, NORMAL),
    ("▁", -3.0, NORMAL), ("a", -4.0, NORMAL), ("b", -5.0, NORMAL), ("c", -6.0, NORMAL),
]  # fmt: skip


def ranks_file(tokens: Sequence[bytes]) -> bytes:
    """A file of tiktoken's: the tokens in the order of their ranks."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def fuzz(number: int, words: tuple[str, ...] = ()) -> list[str]:
    """Characters from all of Unicode but the surrogates, spaces of all kinds, words that imitate pieces."""
    draw = random.Random(4)

    def letter() -> str:
        ranges = ((32, 127), (0xA0, 0x2000), (0x2000, 0x2070), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))
        return draw.choice((chr(draw.randrange(*draw.choice(ranges))), " ", "  ", "a", "▁", "\n", "<0x41>", *words))

    return ["".join(letter() for _ in range(draw.randint(0, 30))) for _ in range(number)]
