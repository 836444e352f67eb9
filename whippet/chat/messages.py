"""What people and models say to each other, as data.

These few frozen classes are what every record of every data format becomes (data/formats.py), what the renderer turns
into tokens (chat/render.py) and what it makes of a model's reply.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant wants called, with its arguments as parsed JSON."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. ``weight`` overrides the loss weight of an assistant turn (0 leaves it untrained)."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    weight: float | None = None

    def as_template_value(self) -> dict[str, Any]:
        """The dictionary that chat templates expect: arguments as a mapping, absent fields left out."""
        value: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            value["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                | ({"id": call.id} if call.id is not None else {})
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            value["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            value["name"] = self.name
        return value

    def as_openai(self) -> dict[str, Any]:
        """The same as the OpenAI protocol has it: arguments as a JSON string."""
        value = self.as_template_value()
        for call in value.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return value


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools (JSON schemas in OpenAI's form) that the assistant may call, and what the chat
    template is told besides (``chat/template_variables.py``)."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    template_variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """Plain text to be continued: ``completion`` is the model's, ``prompt`` is given. No template is applied."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Document:
    """Running text, all of it trained on."""

    text: str


Example = Conversation | Completion | Document
