"""The conversation behind ``whippet chat``: what was said, by each of the models that answer.

Comes in: messages. Goes out: replies, piece by piece. Each voice has a history of its own, so that a comparison stays
one between two whole conversations.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from whippet.chat.messages import Message
from whippet.errors import UsageError, WhippetError
from whippet.infer.model import Model
from whippet.infer.stream import Stream
from whippet.infer.tool_loop import Toolbox, with_ids


@dataclass
class Voice:
    """One model in a conversation. ``bare``: without its adapter."""

    label: str
    model: Model
    bare: bool = False
    messages: list[Message] = field(default_factory=list)
    last: Stream | None = None
    trouble: str | None = None
    """Why what looks like a tool call in the newest reply is text."""

    @property
    def stream(self) -> Stream:
        """The newest reply."""
        assert self.last is not None, "nothing was answered yet"
        return self.last


class Session:
    """The voices of a conversation, the way they draw, the system message and the tools that they share."""

    def __init__(
        self, voices: list[Voice], sampling: dict[str, Any], system: str | None, toolbox: Toolbox | None = None
    ) -> None:
        self.voices, self._sampling, self.toolbox = voices, sampling, toolbox
        self._system: str | None = None
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Forget what was said. ``system`` replaces the system message; an empty one takes it away."""
        self._system = self._system if system is None else system
        for voice in self.voices:
            voice.messages = [Message("system", self._system)] if self._system else []

    def say(self, text: str) -> None:
        """The user's next message, to every voice."""
        for voice in self.voices:
            voice.messages.append(Message("user", text))

    def answer(self, voice: Voice) -> Generator[str, None, None]:
        """The voice's reply in pieces; it joins the history, also if it is broken off. A message that cannot be
        answered (the context is full) is taken back from every voice, and the error raised."""
        tools = self.toolbox.schemas if self.toolbox is not None else None
        with voice.model.base() if voice.bare else nullcontext():
            try:
                voice.last = voice.model.chat_stream(voice.messages, tools, **self._sampling)
            except WhippetError:
                self.take_back()
                raise
            try:
                yield from voice.last
            finally:
                parsed = voice.model.renderer.read(voice.last.text, tools or ())
                voice.messages.append(with_ids(parsed.message, voice.messages) if tools else parsed.message)
                voice.trouble = parsed.trouble if tools else None

    def take_back(self) -> str:
        """Remove the user's last message and the replies to it; return that message."""
        said = None
        for voice in self.voices:
            turns = [index for index, message in enumerate(voice.messages) if message.role == "user"]
            if not turns:
                raise UsageError("nothing was asked yet")
            said = voice.messages[turns[-1]].content
            del voice.messages[turns[-1] :]
        assert said is not None
        return said
