"""A reply that grows, split into what may be shown and what may be a tool call.

Comes in: text, in pieces. Goes out: what certainly is content. Held back is only what may be the beginning of a call
(``openings.py``), the spaces before it, which are not part of the message where one follows, and, once a call has
begun, everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from whippet.chat.messages import Message
from whippet.chat.openings import ANYWHERE, BARE, THINK, THOUGHT
from whippet.chat.replies import Parsed, parse_reply


class ReplyStream:
    """Splits one reply. ``parse`` makes the message of the whole of it; ``names`` are those of the tools that may be
    called, the same that ``parse`` goes by. ``shown``: everything that ``push`` has returned."""

    def __init__(
        self, parse: Callable[[str], Message | Parsed] = parse_reply, names: Collection[str] | None = None
    ) -> None:
        self.trouble: str | None = None
        """Once closed: why what looks like a call was left as text, where ``parse`` tells."""
        self._parse, self._lines = parse, names is not None
        self._parts: list[str] = []
        self._shown: list[str] = []
        self._held = ""
        self._step: Callable[[], int] | None = self._begin

    @property
    def text(self) -> str:
        """The whole reply so far."""
        return "".join(self._parts)

    @property
    def shown(self) -> str:
        return "".join(self._shown)

    def push(self, text: str) -> str:
        """Take the next piece; return the content that may be shown now."""
        self._parts.append(text)
        if self._step is None:
            return ""
        self._held += text
        shown, self._held = _cut(self._held, self._step())
        if shown:
            self._shown.append(shown)
        return shown

    def close(self) -> Message:
        """The whole message. Of its content, what begins where ``shown`` ends has not been shown."""
        parsed = self._parse(self.text)
        if isinstance(parsed, Message):
            return parsed
        self.trouble = parsed.trouble
        return parsed.message

    def _begin(self) -> int:
        """How much of what is held may be shown, at the beginning of the reply."""
        begun = self._held.lstrip()
        if THINK.startswith(begun):
            return 0
        self._step = self._think if begun.startswith(THINK) else self._after_thought
        return self._step()

    def _think(self) -> int:
        """Inside a thought, which holds no calls."""
        place = self._held.find(THOUGHT)
        if place < 0:
            return len(self._held) - _overlap(self._held, THOUGHT)
        # What follows the thought is a beginning once more.
        thought, self._held = _cut(self._held, place + len(THOUGHT))
        self._step = self._after_thought
        rest = self._after_thought()
        self._held = thought + self._held
        return len(thought) + rest

    def _after_thought(self) -> int:
        """Where a bare call may begin."""
        start = len(self._held) - len(self._held.lstrip())
        if start == len(self._held):
            return 0
        if BARE[False].match(self._held, start) is not None:
            if BARE[True].match(self._held, start) is not None:
                self._step = None
            return 0
        self._step = self._speak
        return self._speak()

    def _speak(self) -> int:
        """Anywhere else."""
        if self._held.isspace():
            return 0
        match = ANYWHERE[False, self._lines].search(self._held)
        if match is not None and ANYWHERE[True, self._lines].match(self._held, match.start()) is not None:
            self._step = None
        return len(self._held[: match.start() if match is not None else None].rstrip())


def _cut(text: str, place: int) -> tuple[str, str]:
    return text[:place], text[place:]


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` with which ``mark`` begins."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if mark.startswith(text[-size:])), 0)
