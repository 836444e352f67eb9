"""Messages of an assistant drawn at random: texts that look like calls, calls with whatever JSON can hold."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import Any

from whippet.chat.messages import Message, ToolCall

NAMES = ("get_weather", "math.add_up", "x2")
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "Do.", "parameters": {"type": "object", "properties": {}}},
    }
    for name in NAMES
]
SAID = (
    "Yes.",
    "Let me see:\n\n- one\n- two",
    "Grüße, 你好, 👩‍👩‍👧‍👦 e\u0301",
    'As JSON: {"city": "Oslo"}',
    '{"city": "Oslo"}',
    '{"name": "Bob", "age": 3}',
    '{"name": "none", "parameters": {}}',
    "[1, 2, 3]",
    "[link](https://example.org)",
    "[unknown(x=1)]",
    "a < b, and <tool_call> is a tag, and so is <function=x>",
    "[TOOL_CALL] or not",
    "def f(x):\n    return [g(x) for x in y]",
    "{{ 7 * 7 }} {% if x %}",
    "line\n{\n  no JSON",
)
PIECES = ("a", " ", "  ", "\n", "\t", "\\", "'", '"', "'''", '"""', "\\n", "\\u0041", "{", "}", "[", "]", "(", ")",
          ")]", ",", ";", ":", "=", "</tool_call>", "<tool_call>", "</function>", "[TOOL_CALLS]", "[ARGS]", "<think>",
          "</think>", "é", "日本", "🐕", "\u200b", "\u2028", "\x07", "\x7f", "%", "{{x}}", "#", "None", "1e5", "-",
          "&lt;", "<b>")  # fmt: skip
IDS = string.ascii_letters + string.digits


def text(draw: random.Random) -> str:
    return "".join(draw.choice(PIECES) for _ in range(draw.randint(0, 6)))


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return text(draw)
    if kind == 2:
        return draw.choice((0, -1, 7, 2**70, -(10**30)))
    if kind == 3:
        return draw.choice((0.5, -1e300, 1e-7, 3.0, draw.uniform(-1e6, 1e6)))
    if kind < 6:
        return draw.choice((True, False, None))
    if kind < 8:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {text(draw): value(draw, depth + 1) for _ in range(draw.randint(0, 3))}


def call(draw: random.Random) -> ToolCall:
    keys = draw.sample(("city", "days", "für", "_x", "Class"), draw.randint(0, 3))
    identity = "".join(draw.choice(IDS) for _ in range(9))
    return ToolCall(draw.choice(NAMES), {key: value(draw) for key in keys}, identity)


def replies(draw: random.Random, number: int, *, several: bool, beside: bool) -> Iterator[Message]:
    """``several``: also more than one call in a turn. ``beside``: also text and calls in one."""
    for _ in range(number):
        calls = tuple(call(draw) for _ in range(draw.choice((0, 1, 1, 2, 3) if several else (0, 1, 1))))
        said = draw.choice(SAID) if not calls or (beside and draw.random() < 0.5) else ""
        yield Message("assistant", said, calls)
