"""A model that says what it is told to, for tests of tools, and the functions that it calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from helpers_chat import byte_tokenizer

from whippet.chat.messages import Message
from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.infer.model import Model
from whippet.infer.prompts import Messages, conversation

FILE = '''
"""Tools for tests."""
import json
from math import sqrt
from pathlib import Path
from textwrap import dedent

def get_current_temperature(location: str) -> float:
    """
    Get the current temperature at a location.

    Args:
        location: The location to get the temperature for, in the format "City, Country"
    Returns:
        The current temperature at the specified location in the specified units, as a float.
    """
    return 22.0

def fail(why: str) -> None:
    """Fail.

    Args:
        why: The reason
    """
    raise RuntimeError(why)

def _hidden() -> int:
    """Not for the model."""
    return 1

def undocumented() -> int:
    return 2

class Other:
    """No function."""
'''


class Scripted:
    """Replies in order, whatever is asked. ``asked``: the messages and tools of each time."""

    has_adapter, about = False, "scripted"

    def __init__(self, renderer: Renderer, replies: Sequence[str]) -> None:
        self.renderer = renderer
        self.asked: list[tuple[list[Message], list[Any]]] = []
        self._replies = iter(replies)

    def chat_stream(
        self, messages: str | Messages, tools: Sequence[Mapping[str, Any]] | None = None, **sampling: Any
    ) -> Any:
        asked = conversation(messages, tools)
        self.renderer.prompt_ids(asked.messages, asked.tools)
        self.asked.append((list(asked.messages), list(asked.tools)))
        return Said(next(self._replies))


class Said(SimpleNamespace):
    """A stream of one reply, a word at a time."""

    def __init__(self, reply: str) -> None:
        super().__init__(text=reply, finish="stop", ids=[1], prompt_ids=[1], seconds=1.0, tokens_per_second=1.0)

    def __iter__(self) -> Iterator[str]:
        return iter([self.text])

    def drain(self) -> Said:
        return self


def scripted(folder: Path, replies: Sequence[str], template: str = "chatml") -> Model:
    """A model of one of our templates that gives these replies."""
    tokenizer = Tokenizer.load(byte_tokenizer(folder / Path(template).stem, adds_bos=True))
    return cast(Model, Scripted(make_renderer(tokenizer, template), replies))


def tools_file(folder: Path) -> Path:
    path = folder / "my_tools.py"
    path.write_text(FILE, encoding="utf-8")
    return path
