"""What a program or a file asks with, checked and turned into a Conversation.

Comes in: a text (one user message), ``Message`` objects, or dictionaries in OpenAI's form. Goes out: a
``Conversation``. Every DataError names the place, the key and what was met.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whippet.chat.messages import ROLES, Conversation, Message, ToolCall
from whippet.errors import DataError

Messages = Conversation | Sequence[Message] | Sequence[Mapping[str, Any]]


def conversation(messages: str | Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> Conversation:
    """``messages`` (and ``tools``, JSON schemas in OpenAI's form) as a Conversation. A text is one user message."""
    if isinstance(messages, Conversation):
        return messages if tools is None else Conversation(messages.messages, _tools(tools, "tools"))
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    if not messages:
        raise DataError("messages: the list is empty, wanted at least one message")
    made = [m if isinstance(m, Message) else _message(m, f"messages[{i}]") for i, m in enumerate(messages)]
    return Conversation(tuple(made), _tools(tools or (), "tools"))


def read_conversation(path: Path | str, text: str) -> Conversation:
    """``text``, the content of ``path``: a JSON list of messages, or an object with ``messages`` and ``tools``."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{path}: not usable JSON: nested too deeply") from error
    if isinstance(value, dict) and "messages" in value:
        messages, tools = value["messages"], value.get("tools")
    else:
        messages, tools = value, None
    if not isinstance(messages, list) or not isinstance(tools, list | None):
        raise DataError(f'{path}: wanted a list of messages or {{"messages": [...], "tools": [...]}}, met {text!r:.60}')
    try:
        return conversation(messages, tools)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is {value!r:.60}, wanted an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        raise DataError(f"{where}.role is {role!r}, wanted one of {', '.join(ROLES)}")
    calls = value.get("tool_calls") or ()
    content = value.get("content")
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise DataError(f"{where}.content is {content!r:.60}, wanted a text")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise DataError(f"{where}.tool_calls is {calls!r:.60}, wanted a list")
    return Message(
        role,
        content,
        tuple(_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)),
        _optional(value, "tool_call_id", where),
        _optional(value, "name", where),
    )


def _part(value: Any, where: str) -> str:
    """OpenAI's content may be a list of parts; those that are text are joined."""
    if isinstance(value, Mapping) and value.get("type") == "text" and isinstance(value.get("text"), str):
        return str(value["text"])
    raise DataError(f'{where} is {value!r:.60}, wanted {{"type": "text", "text": ...}}')


def _call(value: Any, where: str) -> ToolCall:
    function = value.get("function") if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise DataError(f'{where} is {value!r:.60}, wanted {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise DataError(f"{where}.function.arguments is not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise DataError(f"{where}.function.arguments is {arguments!r:.60}, wanted an object")
    return ToolCall(name, arguments, _optional(value, "id", where))


def _optional(value: Mapping[str, Any], key: str, where: str) -> str | None:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise DataError(f"{where}.{key} is {found!r:.60}, wanted a text")
    return found


def _tools(tools: Sequence[Mapping[str, Any]], where: str) -> tuple[dict[str, Any], ...]:
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise DataError(f"{where}[{index}] is {tool!r:.60}, wanted a JSON schema in OpenAI's form")
    return tuple(dict(tool) for tool in tools)
