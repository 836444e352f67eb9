"""What bytes each token of a vocabulary stands for within a text.

A byte-level vocabulary writes a letter for each byte (``tiktoken.byte_letters``); one of SentencePiece writes ``▁`` for
a space and ``<0x0A>`` for a byte that none of its pieces holds. Which of the two it is shows only in use: vocabularies
of SentencePiece may hold the other's letters as pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from whippet.chat.tiktoken import byte_letters
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import UsageError

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "▁"
SAMPLE = '{"a": [1, "é 日本🐕"],\n  "b":\t-2.5e3} </tool_call>'
LETTERS = {letter: byte for byte, letter in enumerate(byte_letters())}


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id; added tokens are their text, ids that are no token are empty. UsageError for a tokenizer
    whose tokens do not make up a text, because it changes texts before it cuts them."""
    added = set(tokenizer.added_tokens.values())

    def read(token_id: int, piece: Callable[[str], bytes]) -> bytes:
        written = tokenizer.token_text(token_id) or ""
        return written.encode() if token_id in added else piece(written)

    sample = tokenizer.encode(SAMPLE)
    for piece in (_byte_level, _sentencepiece):
        made = b"".join(read(token_id, piece) for token_id in sample)
        if made.removeprefix(b" ") == SAMPLE.encode():
            return [read(token_id, piece) for token_id in range(tokenizer.vocab_size)]
    raise UsageError("the tokens of this tokenizer do not make up a text byte by byte, so it cannot be constrained")


def _byte_level(written: str) -> bytes:
    held = [LETTERS.get(letter) for letter in written]
    return written.encode() if None in held else bytes(byte for byte in held if byte is not None)


def _sentencepiece(written: str) -> bytes:
    match = BYTE.fullmatch(written)
    return bytes([int(match[1], 16)]) if match else written.replace(SPACE, " ").encode()
