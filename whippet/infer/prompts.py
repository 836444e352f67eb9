"""What a program or a file asks with, checked and turned into a Conversation.

Comes in: a text (one user message), ``Message`` objects, or dictionaries in a form that training data may have too
(``data/turns.py``). Goes out: a ``Conversation``. Every DataError names the place, the key and what was met.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from whippet.chat.messages import Conversation, Message
from whippet.data.turns import VARIABLES, checked_text, parse_tools, parse_turn, parse_variables
from whippet.errors import DataError

Messages = Conversation | Sequence[Message] | Sequence[Mapping[str, Any]]


def conversation(messages: str | Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> Conversation:
    """``messages`` (and ``tools``, JSON schemas in OpenAI's form) as a Conversation. A text is one user message."""
    if isinstance(messages, Conversation):
        return messages if tools is None else replace(messages, tools=parse_tools(list(tools)))
    if isinstance(messages, str):
        messages = [Message("user", checked_text(messages, "the message"))]
    if not messages:
        raise DataError("messages: the list is empty, wanted at least one message")
    made = [m if isinstance(m, Message) else parse_turn(m, f"messages[{i}]") for i, m in enumerate(messages)]
    return Conversation(tuple(made), parse_tools(None if tools is None else list(tools)))


def read_conversation(path: Path | str, text: str) -> Conversation:
    """``text``, the content of ``path``: a JSON list of messages, or an object with ``messages``, ``tools`` and
    ``chat_template_kwargs``, as records of training data have them."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{path}: not usable JSON: nested too deeply") from error
    whole = value if isinstance(value, dict) else {"messages": value}
    if not isinstance(whole.get("messages"), list):
        raise DataError(f'{path}: wanted a list of messages or {{"messages": [...], "tools": [...]}}, met {text!r:.60}')
    try:
        messages, tools = conversation(whole["messages"]).messages, parse_tools(whole.get("tools"))
        return Conversation(messages, tools, parse_variables(whole.get(VARIABLES)))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
