"""The messages of a chat request, strictly: what is not understood is refused.

Comes in: objects as OpenAI's clients send them. Goes out: ``Message`` objects. Images and the like may be meant for a
model that takes them; those here take text. No URL that a request holds is ever opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whippet.chat.messages import ROLES, Message
from whippet.data.turns import RecordError, parse_turn
from whippet.serve.errors import bad
from whippet.serve.fields import Json, shown

KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
EMPTY_ONLY = ("refusal", "annotations", "audio", "function_call")
"""What clients send along when they hand back a reply of ours, always null or empty."""
CALL_KEYS = ("id", "type", "function", "index")
MAX_PARTS = 1024
TEXT_ONLY = "this model takes text only"
TEXTS: Json = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
CALL: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1}, "arguments": {"type": "string"}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
    "additionalProperties": False,
}
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": TEXTS, "maxItems": MAX_PARTS}]},
        "name": {"type": "string"},
        "tool_calls": {"type": "array", "items": CALL, "description": "of an assistant"},
        "tool_call_id": {"type": "string", "description": "of a tool: which call it answers"},
        "reasoning_content": {"type": "string"},
    },
    "required": ["role"],
}
"""What ``read_messages`` takes, for ``/openapi.json``; a template may refuse more (roles out of turn, say)."""


def read_messages(messages: Sequence[Json]) -> list[Message]:
    """The conversation; ApiError names the message and the key."""
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(given: Json, at: str) -> Message:
    for key, value in given.items():
        if key in EMPTY_ONLY and value:
            raise bad("is not supported", f"{at}.{key}", "unsupported_parameter")
        if key not in KEYS and key not in EMPTY_ONLY:
            raise bad(f"is not a key of a message; known: {', '.join(KEYS)}", f"{at}.{key:.40}", "unknown_parameter")
    if isinstance(given.get("content"), list):
        _check_parts(given["content"], f"{at}.content")
    calls = given.get("tool_calls")
    if calls is not None:
        _check_calls(calls, f"{at}.tool_calls")
    try:
        return parse_turn(given, at)
    except RecordError as error:
        raise bad(error.reason, error.field) from error


def _check_parts(parts: list[Any], at: str) -> None:
    """Every part is a text, with no keys that would mean more."""
    if len(parts) > MAX_PARTS:
        raise bad(f"has {len(parts)} parts, wanted at most {MAX_PARTS}", at)
    for place, part in enumerate(parts):
        where = f"{at}[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_url":
            _refuse_image(part.get("image_url"), f"{where}.image_url")
        if kind != "text":
            said = f"{TEXT_ONLY}: " if isinstance(kind, str) else ""
            raise bad(f"{said}wanted a part of type 'text', met {shown(kind or part)}", where)
        if set(part) != {"type", "text"}:
            raise bad("wanted exactly the keys type and text", where)


def _refuse_image(image: Any, at: str) -> None:
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise bad(f"wanted an object with a url, met {shown(image)}", at)
    if not url[:5].lower() == "data:":
        raise bad("no URL is ever fetched: an image can only come within the request, as a data: URI", f"{at}.url")
    raise bad(f"{TEXT_ONLY}, and no images", at)


def _check_calls(calls: Any, at: str) -> None:
    if not isinstance(calls, list):
        raise bad(f"wanted a list, met {shown(calls)}", at)
    for place, call in enumerate(calls):
        where = f"{at}[{place}]"
        if not isinstance(call, dict) or call.get("type", "function") != "function" or "function" not in call:
            raise bad(f"wanted a call of a function, met {shown(call)}", where)
        for key in call:
            if key not in CALL_KEYS:
                raise bad("is not a key of a tool call", f"{where}.{key:.40}", "unknown_parameter")
