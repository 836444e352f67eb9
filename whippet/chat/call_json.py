"""Tool calls that are written as JSON objects, and what arguments of any form may hold.

``{"name": ..., "arguments": {...}}`` (Hermes, Qwen, Mistral), ``parameters`` instead (Llama 3), or that below
``function`` (OpenAI). What comes out can be written as JSON again: numbers are finite, texts can be encoded, nothing is
nested deeper than ``MAX_DEPTH``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from whippet.chat.messages import ToolCall

MAX_DEPTH = 64
SEPARATOR = re.compile(r"[\s;,]*")
SPACE = re.compile(r"\s*")
SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(ValueError):
    """What was meant to be a call is none; the message says why."""


def read_objects(text: str, start: int) -> list[ToolCall]:
    """The calls that ``text`` holds from ``start`` to its end: objects side by side or after ``;``, or a list."""
    calls: list[ToolCall] = []
    place = start
    while place < len(text):
        found, place = read_value(text, place)
        calls += found
        place = skip(text, place, SEPARATOR)
    return calls


def read_value(text: str, start: int) -> tuple[list[ToolCall], int]:
    """The calls of the object or list that begins at ``start``, and where it ends."""
    value, end = decode(text, start)
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise Malformed("the list of calls is empty")
    return [as_call(one) for one in listed], end


def skip(text: str, start: int, passed: re.Pattern[str] = SPACE) -> int:
    """Where what is not a space (or not ``passed``) begins."""
    match = passed.match(text, start)
    return match.end() if match is not None else start


def decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at ``start``, and where it ends."""
    try:
        return DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise Malformed(f"its JSON is broken at character {error.pos}: {error.msg}") from error
    except RecursionError as error:
        raise Malformed(f"its JSON is nested deeper than {MAX_DEPTH}") from error
    except ValueError as error:
        raise Malformed(f"its JSON cannot be read: {str(error)[:80]}") from error


def as_call(value: Any) -> ToolCall:
    """The call that a JSON value describes."""
    if not isinstance(value, dict):
        raise Malformed(f"wanted an object with a name and arguments, met {_kind(value)}")
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    name = inner.get("name")
    if not isinstance(name, str) or not name:
        raise Malformed("it names no function")
    key = "arguments" if "arguments" in inner else "parameters"
    if key not in inner:
        raise Malformed(f"{name:.60}: it has no arguments")
    arguments = inner[key]
    if isinstance(arguments, str):
        arguments = _whole(arguments)
    if not isinstance(arguments, dict):
        raise Malformed(f"{name:.60}: {key} is {_kind(arguments)}, wanted an object")
    identity = value.get("id")
    named = identity if isinstance(identity, str) and identity else None
    check_values([name, arguments, named])
    return ToolCall(name, arguments, named)


def check_values(values: Sequence[Any]) -> None:
    """Raise Malformed for what could not be written as JSON again: anything too deep, a number that is not finite, half
    of a UTF-16 pair."""
    level: list[Any] = list(values)
    for _ in range(MAX_DEPTH + 2):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, str):
                if not value.isascii() and SURROGATE.search(value):
                    raise Malformed("a text in it holds half of a UTF-16 pair, which is no character")
            elif isinstance(value, float) and not math.isfinite(value):
                raise Malformed("a number in it is not finite")
            elif isinstance(value, dict):
                deeper += value.keys()
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
        if not deeper:
            return
        level = deeper
    raise Malformed(f"it is nested deeper than {MAX_DEPTH}")


def _whole(text: str) -> Any:
    """Arguments that are written as the text of JSON."""
    value, end = decode(text, skip(text, 0))
    if text[end:].strip():
        raise Malformed("its arguments are a text with more in it than one JSON value")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


DECODER = json.JSONDecoder(parse_constant=_constant)
