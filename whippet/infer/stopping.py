"""From token ids to the text that may be shown: whole characters only, and never a part of a stop text.

Comes in: ids, one at a time, and the stop texts. Goes out: text as soon as it is certain not to begin a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence

from whippet.chat.tokenizer import Tokenizer


class ReplyText:
    """The text of one reply while it grows. ``stopped`` turns true when a stop text has come; it is cut off.

    ``context`` are the ids before the reply: some tokenizers drop the space before the first token of a text, and
    only with the context is the reply's own first space kept.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), context: Sequence[int] = ()) -> None:
        self._stream = tokenizer.stream()
        self._stop = tuple(stop)
        self._held = ""
        self._parts: list[str] = []
        self.stopped = False
        for token_id in context[-8:]:
            self._stream.push(token_id)

    @property
    def text(self) -> str:
        """Everything that was let through so far."""
        return "".join(self._parts)

    def push(self, token_id: int) -> str:
        """Take one id; return the text that may be shown now."""
        return self._let_through(self._stream.push(token_id), last=False)

    def close(self) -> str:
        """Return what was held back: the reply is over without a stop text."""
        return self._let_through(self._stream.close(), last=True)

    def _let_through(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        pending = self._held + new
        first = min((place for place in map(pending.find, self._stop) if place >= 0), default=-1)
        if first >= 0:
            self.stopped = True
            shown, self._held = pending[:first], ""
        else:
            keep = 0 if last else max((_overlap(pending, stop) for stop in self._stop), default=0)
            shown, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        if shown:
            self._parts.append(shown)
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
