"""Log-probabilities of drawn tokens in the two shapes that OpenAI's routes have.

A token is told as its text and as its bytes: one token may be a part of a character, and then only the bytes say which.
"""

from __future__ import annotations

from collections.abc import Sequence

from whippet.chat.token_bytes import token_bytes
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import UsageError
from whippet.infer.requests import Drawn
from whippet.serve.fields import Json

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class TokenBytes:
    """What bytes each token stands for within a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            self._known = token_bytes(tokenizer)
        except UsageError:  # it changes texts before it cuts them: what a token shows alone is the nearest
            self._known = [tokenizer.decode([token_id]).encode() for token_id in range(tokenizer.vocab_size)]

    def __call__(self, token_id: int) -> bytes:
        """Empty for an id that is no token; models may have more rows than their tokenizer has tokens."""
        return self._known[token_id] if token_id < len(self._known) else b""


def chat_logprob(drawn: Drawn, token_bytes: TokenBytes) -> Json:
    """An item of ``choices[].logprobs.content``."""
    return _told(drawn.id, drawn.logprob, token_bytes) | {
        "top_logprobs": [_told(token_id, logprob, token_bytes) for token_id, logprob in drawn.top]
    }


def completion_logprobs(drawn: Sequence[Drawn], top: int, offset: int, token_bytes: TokenBytes) -> Json:
    """``choices[].logprobs`` of a completion; ``offset``: where in the text the first of these tokens begins."""
    texts = [_text(token_bytes(one.id)) for one in drawn]
    offsets = [offset]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + len(text))
    told: Json = {
        "tokens": texts,
        "token_logprobs": [_number(one.logprob) for one in drawn],
        "top_logprobs": [{_text(token_bytes(i)): _number(p) for i, p in one.top} for one in drawn] if top else None,
        "text_offset": offsets if texts else [],
    }
    return told


def _told(token_id: int, logprob: float | None, token_bytes: TokenBytes) -> Json:
    raw = token_bytes(token_id)
    return {"token": _text(raw), "logprob": _number(logprob), "bytes": list(raw)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _number(logprob: float | None) -> float:
    return LOWEST if logprob is None else max(logprob, LOWEST)
