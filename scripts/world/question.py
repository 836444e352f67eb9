"""One question with its only right answer, and what decides whether it is held out.

Comes in: a random generator and wordings. Goes out: a ``Question``. Its ``key`` names what is asked, not how: all
wordings of 37 + 45 have one key, so that a held-out sum was never seen in any form. Closed tables (capitals, times
tables), which nobody can guess, have the wording in their key instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

HELD_OUT_SHARE = 50
"""One key in this many is held out."""


@dataclass(frozen=True)
class Question:
    topic: str
    key: str
    ask: str
    answer: str
    brief: str
    """The answer where the system prompt asks for nothing but the result."""
    value: int | None = None
    """The number that a follow-up question goes on with."""
    tools: tuple[dict[str, Any], ...] = ()
    call: tuple[str, dict[str, Any]] | None = None
    """The function that is to be called first, and its arguments; ``answer`` is then what is said about ``result``."""
    result: str = ""

    @property
    def held_out(self) -> bool:
        """Whether it is kept out of all training text."""
        digest = hashlib.sha256(f"{self.topic}:{self.key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


Maker = Callable[[Random], Question]


def worded(
    draw: Random,
    topic: str,
    key: str,
    asks: Sequence[str],
    answer: str,
    brief: str,
    *,
    closed: bool = False,
    as_is: bool = False,
    value: int | None = None,
    **words: object,
) -> Question:
    """A question in one of ``asks``. ``asks``, ``answer`` and ``brief`` are formats over ``words``. ``closed``: the
    wording is part of the key. ``as_is``: the answer does not begin with a capital."""
    wording = draw.randrange(len(asks))
    text = asks[wording].format(**words)
    return Question(
        topic=topic,
        key=f"{key}|{wording}" if closed else key,
        ask=sentence(text),
        answer=answer.format(**words) if as_is else sentence(answer.format(**words)),
        brief=brief.format(**words),
        value=value,
    )


def sentence(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def article(word: str) -> str:
    """``a dog``, ``an owl``."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
