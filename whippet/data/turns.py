"""One turn of a conversation, as the OpenAI, ShareGPT and LLaMA-Factory v1 forms write it, to a ``Message``.

OpenAI: role, content (text or typed parts), tool_calls with arguments as a JSON string, weight.
ShareGPT: from (human, gpt, system, function_call, observation), value.
LLaMA-Factory v1: role, content as parts {type, value} of text, reasoning and tool_call, loss_weight.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from whippet.chat.messages import ROLES, Message, Role, ToolCall
from whippet.chat.template_variables import wrong_value
from whippet.errors import DataError

EMPTY = "empty answer"
VARIABLES = "chat_template_kwargs"
SPEAKERS: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "system": "system", "function_call": "assistant", "observation": "tool", "tool": "tool",
    "function": "tool", "function_response": "tool",
}  # fmt: skip
SURROGATE = re.compile("[\ud800-\udfff]")


class RecordError(DataError):
    """A record that cannot be used: ``reason``, and the ``field`` it lies in ('' for the record as a whole)."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field


def checked_text(value: Any, field: str) -> str:
    """``value`` if it is text that can be encoded."""
    if not isinstance(value, str):
        raise RecordError(f"wanted text, met {_shown(value)}", field)
    if not value.isascii() and SURROGATE.search(value):
        raise RecordError("holds half of a UTF-16 pair, which is no character", field)
    return value


def text_or_empty(value: Mapping[str, Any], field: str) -> str:
    """The text of a field that may be absent or null."""
    found = value.get(field)
    return "" if found is None else checked_text(found, field)


def from_json(value: Any, field: str) -> Any:
    """``value``, or what it means if it is text: tables keep lists and objects as JSON strings."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"is text that is not JSON ({error})", field) from error


def parse_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools of a record, a list or its JSON string, each in OpenAI's form."""
    if value is None or value == "":
        return ()
    tools = from_json(value, "tools")
    if not isinstance(tools, list):
        raise RecordError(f"wanted a list of functions, met {_shown(tools)}", "tools")
    return tuple(_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools))


def _tool(tool: Any, field: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(f"wanted a function with a name, met {_shown(tool)}", field)
    return tool if "function" in tool else {"type": "function", "function": tool}


def parse_variables(value: Any) -> dict[str, Any]:
    """``chat_template_kwargs``, as TRL calls what a record tells its chat template: an object or its JSON string.

    A null counts as absent: tables fill up with it where another record has a key.
    """
    if value is None or value == "":
        return {}
    told = from_json(value, VARIABLES)
    if not isinstance(told, dict):
        raise RecordError(f"wanted an object of names and values, met {_shown(told)}", VARIABLES)
    variables = {name: item for name, item in told.items() if item is not None}
    for name, item in variables.items():
        if fault := wrong_value(item):
            raise RecordError(fault, f"{VARIABLES}.{name}")
    return variables


def parse_turn(turn: Any, field: str) -> Message:
    """The message that ``turn`` stands for; RecordError names what is wrong inside ``field``."""
    if not isinstance(turn, Mapping):
        raise RecordError(f"wanted an object, met {_shown(turn)}", field)
    if "role" not in turn and "from" in turn:
        return _sharegpt(turn, field)
    role = _role(turn.get("role"), f"{field}.role")
    content, calls = _content(turn.get("content"), f"{field}.content")
    if turn.get("reasoning_content"):
        content = _thought(checked_text(turn["reasoning_content"], f"{field}.reasoning_content")) + content
    calls += _tool_calls(turn, field)
    if calls and role != "assistant":
        raise RecordError(f"a tool call by {role}; only the assistant calls tools", field)
    if turn.get("content") is None and not calls and role != "assistant":
        raise RecordError("is missing", f"{field}.content")
    return Message(
        role,
        content,
        calls,
        tool_call_id=_optional_text(turn, "tool_call_id", field),
        name=_optional_text(turn, "name", field),
        weight=_weight(turn, role, field),
    )


def _role(value: Any, field: str) -> Role:
    role = "tool" if value == "function" else value
    if role not in ROLES:
        raise RecordError(f"unknown role {_shown(role)}; known: {', '.join(ROLES)}", field)
    return cast(Role, role)


def _sharegpt(turn: Mapping[str, Any], field: str) -> Message:
    speaker = turn["from"]
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(SPEAKERS)
        raise RecordError(f"unknown speaker {_shown(speaker)}; known: {known}", f"{field}.from")
    value = turn.get("value")
    weight = _weight(turn, role, field)
    if speaker == "function_call":
        calls = from_json(value, f"{field}.value")
        listed = calls if isinstance(calls, list) else [calls]
        return Message(role, "", tuple(_call(call, f"{field}.value") for call in listed), weight=weight)
    if value is None:
        raise RecordError("is missing", f"{field}.value")
    return Message(role, checked_text(value, f"{field}.value"), weight=weight)


def _content(content: Any, field: str) -> tuple[str, tuple[ToolCall, ...]]:
    if content is None:
        return "", ()
    if isinstance(content, str):
        return checked_text(content, field), ()
    if not isinstance(content, list):
        raise RecordError(f"wanted text or a list of parts, met {_shown(content)}", field)
    texts: list[str] = []
    calls: list[ToolCall] = []
    for place, part in enumerate(content):
        where = f"{field}[{place}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(_part_text(part, where))
        elif kind == "reasoning":
            texts.append(_thought(_part_text(part, where)))
        elif kind == "tool_call":
            calls.append(_call(from_json(part.get("value"), where), where))
        else:
            raise RecordError(f"wanted a part of type text, reasoning or tool_call, met {_shown(part)}", where)
    return "".join(texts), tuple(calls)


def _part_text(part: Mapping[str, Any], field: str) -> str:
    value = part.get("text")
    return checked_text(part.get("value") if value is None else value, field)


def _thought(text: str) -> str:
    """Reasoning is written as the models that reason write it."""
    return f"<think>\n{text}\n</think>\n\n"


def _tool_calls(turn: Mapping[str, Any], field: str) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls")
    if calls is None and turn.get("function_call") is not None:
        return (_call(turn["function_call"], f"{field}.function_call"),)
    calls = from_json(calls or [], f"{field}.tool_calls")
    if not isinstance(calls, list):
        raise RecordError(f"wanted a list, met {_shown(calls)}", f"{field}.tool_calls")
    return tuple(_call(call, f"{field}.tool_calls[{place}]") for place, call in enumerate(calls))


def _call(call: Any, field: str) -> ToolCall:
    """``{name, arguments}``, or that below ``function`` beside an id; arguments as an object or its JSON string."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RecordError(f"wanted a call with a name and arguments, met {_shown(call)}", field)
    arguments = from_json(function.get("arguments") or {}, f"{field}.arguments")
    if not isinstance(arguments, dict):
        raise RecordError(f"wanted an object of arguments, met {_shown(arguments)}", f"{field}.arguments")
    identity = call.get("id")
    return ToolCall(checked_text(name, field), arguments, None if identity is None else checked_text(identity, field))


def _weight(turn: Mapping[str, Any], role: Role, field: str) -> float | None:
    key = "weight" if turn.get("weight") is not None else "loss_weight"
    weight = turn.get(key)
    if weight is None:
        return None
    wrong = isinstance(weight, bool) or not isinstance(weight, int | float)
    if wrong or not math.isfinite(weight) or weight < 0:
        raise RecordError(f"wanted a number of 0 or more, met {_shown(weight)}", f"{field}.{key}")
    if role != "assistant":
        if weight:
            raise RecordError(f"{weight} on a turn of {role}; only the assistant's turns are trained", f"{field}.{key}")
        return None
    return float(weight)


def _optional_text(turn: Mapping[str, Any], key: str, field: str) -> str | None:
    value = turn.get(key)
    return None if value is None else checked_text(value, f"{field}.{key}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
