"""Ids to text as they come, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Turns ids into text one by one, holding back bytes until they make whole characters. ``decode`` is that of whole
    lists of ids."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0  # tokens before the new ones that the new ones' spacing depends on
        self._shown = ""

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes, empty while a character is unfinished."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new = text[len(self._shown) :]
        self._forget(text)
        return new

    def close(self) -> str:
        """What was held back, with U+FFFD for what never became a character."""
        text = self._decode(self._ids)
        new = text[len(self._shown) :]
        self._forget(text)
        return new

    def _forget(self, text: str) -> None:
        """Keep only the newest tokens that show as text, so that the cost of a token does not grow with the text."""
        newest = self._ids[self._context :]
        shown = self._decode(newest)
        self._ids, self._shown = (newest, shown) if shown else (self._ids, text)
        self._context = len(self._ids)
