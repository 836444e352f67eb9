"""Replies drawn at random: jumbles of the marks with which tool calls are written."""

from __future__ import annotations

import random
from collections.abc import Iterator

MARKS = ("<tool_call>", "</tool_call>", "<function=f>", "</function>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "f",
         '{"name": "f", "arguments": {"a": "x"}}', '{"name": ', '"parameters"', "[f(", "x=", "'", '"', '"""', ")]", "(",
         ")", "[", "]", "{", "}", ",", ";", ":", "\\", "\\u", "\n", " ", "1", "e9", "-", "None", "é", "<think>",
         "</think>", "a")  # fmt: skip


def jumbles(number: int) -> Iterator[str]:
    """Marks of all forms in any order: mostly broken, now and then a call."""
    draw = random.Random(number)
    for _ in range(number):
        yield "".join(draw.choice(MARKS) for _ in range(draw.randint(1, 14)))
