"""Where in a reply a tool call may begin.

The reader of whole replies (``replies.py``) and the splitter of growing ones (``reply_stream.py``) look for the same
openings: what the one may take for a call the other holds back. An opening is longer than a single mark, so that prose
about ``<tool_call>`` and ordinary JSON are not mistaken for calls, nor held back.

Tags may stand anywhere. A bare call begins the reply, or follows the thought (``<think>...</think>``) that begins it;
where the names of the tools are known it may also begin a later line.
"""

from __future__ import annotations

import re

PYTHON_TAG, CALLS_TAG = "<|python_tag|>", "[TOOL_CALLS]"
THINK, THOUGHT = "<think>", "</think>"
KEYS = ("name", "type", "id", "function", "parameters", "arguments")
"""What an object that is a call may begin with."""
GAP = r"\s{0,64}"


class Growing:
    """Regular expressions in a row. ``whole`` matches all of them; ``part`` also what a text holds of them where it
    ends between two. Each is taken as one, so a mark goes in letter by letter."""

    def __init__(self, *parts: str) -> None:
        self.whole = "".join(parts)
        self.part = ""
        for part in reversed(parts):
            self.part = part + (rf"(?:\Z|{self.part})" if self.part else "")


def either(*choices: Growing) -> Growing:
    """One of several rows."""
    made = Growing()
    made.whole = "(?:" + "|".join(choice.whole for choice in choices) + ")"
    made.part = "(?:" + "|".join(choice.part for choice in choices) + ")"
    return made


def after(first: Growing, then: Growing) -> Growing:
    """One row, and the other after it."""
    made = Growing()
    made.whole = first.whole + then.whole
    # What ends within the first, or where it ends, is a part of the two.
    made.part = rf"(?:{first.whole}(?:\Z|{then.part})|{first.part}\Z)"
    return made


def _letters(text: str) -> list[str]:
    return [re.escape(letter) for letter in text]


OBJECT = after(Growing(r"\{", GAP, '"'), either(*(Growing(*_letters(key), '"', GAP, ":") for key in KEYS)))
# The gaps and names are bounded, so that a reply of spaces or letters is not held back for ever.
KINDS = {
    "hermes": Growing(*_letters("<tool_call>"), GAP, r"\{"),
    "function": Growing(*_letters("<function="), r"[\w.-]{1,128}", ">", GAP, r"\{"),
    "python": Growing(*_letters(PYTHON_TAG)),
    "mistral": Growing(*_letters(CALLS_TAG)),
}
BARE_KINDS = {
    "json": either(OBJECT, after(Growing(r"\[", GAP), OBJECT)),
    "listed": Growing(r"\[", GAP, r"[^\W\d][\w.]{0,127}", r"\("),
}


def _kinds(kinds: dict[str, Growing], *, whole: bool) -> str:
    return "|".join(f"(?P<{kind}>{one.whole if whole else one.part})" for kind, one in kinds.items())


def _search(*, whole: bool, lines: bool) -> re.Pattern[str]:
    at_line = rf"|(?<=\n)[ \t]{{0,64}}(?:{_kinds(BARE_KINDS, whole=whole)})" if lines else ""
    return re.compile(_kinds(KINDS, whole=whole) + at_line)


ANYWHERE = {(whole, lines): _search(whole=whole, lines=lines) for whole in (True, False) for lines in (True, False)}
BARE = {whole: re.compile(_kinds(BARE_KINDS, whole=whole)) for whole in (True, False)}
SPACES = re.compile(r"\s*")


def thought_end(text: str) -> int:
    """Where the thought that begins ``text`` ends: 0 if there is none, the text's length if it never ends."""
    if not text.lstrip().startswith(THINK):
        return 0
    place = text.find(THOUGHT)
    return place + len(THOUGHT) if place >= 0 else len(text)


def first_opening(text: str, start: int, *, lines: bool) -> re.Match[str] | None:
    """The first opening from ``start``, where a thought has ended or the reply begins; its ``lastgroup`` is the kind.
    ``lines``: whether a bare call may begin a line."""
    spaces = SPACES.match(text, start)
    assert spaces is not None
    return BARE[True].match(text, spaces.end()) or ANYWHERE[True, lines].search(text, start)
