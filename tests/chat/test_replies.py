"""Replies as calls, in the forms that models write them."""

from __future__ import annotations

from typing import Any

import pytest

from whippet.chat.messages import Message, ToolCall
from whippet.chat.replies import parse_reply

END = "</tool_call>"
TWO_CALLS = "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in "fg")


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
        ('<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
        ('<tool_call>\n{"name": "f", "arguments": {"a": "</x>"}}\n</tool_call>', "", [("f", {"a": "</x>"})]),
        ('Let me.\n<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "Let me.", [("f", {"a": 1})]),
        (TWO_CALLS, "", [("f", {}), ("g", {})]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "", [("f", {"a": END})]),
        ("plain text", "plain text", []),
        (" spaces kept ", " spaces kept ", []),
        ('{"name": "f", "parameters": {', '{"name": "f", "parameters": {', []),
        ('{"name": 3, "parameters": {}}', '{"name": 3, "parameters": {}}', []),
        ('{"name": "f", "parameters": [1]}', '{"name": "f", "parameters": [1]}', []),
        ('{"name": "f"}', '{"name": "f"}', []),
        ("[1]", "[1]", []),
        ("<tool_call>broken</tool_call>", "<tool_call>broken</tool_call>", []),
        ('<tool_call>{"name": "f", "arguments": {}}', '<tool_call>{"name": "f", "arguments": {}}', []),
        ("[" * 100_000, "[" * 100_000, []),
        ("<|python_tag|>" + "[" * 100_000, "", [("code_interpreter", {"code": "[" * 100_000})]),
        ("[f(city='San Francisco', n=-1.5), g()]", "", [("f", {"city": "San Francisco", "n": -1.5}), ("g", {})]),
        ("[a.f(x=[1, {'k': None}])]", "", [("a.f", {"x": [1, {"k": None}]})]),
        ("[f(x=g())]", "[f(x=g())]", []),
        ("[f(1)]", "[f(1)]", []),
        ("[f(**x)]", "[f(**x)]", []),
        ("[f(x={1, 2})]", "[f(x={1, 2})]", []),
        ("[f(x=1e999)]", "[f(x=1e999)]", []),
        ("[f(x=1), 2]", "[f(x=1), 2]", []),
        ("[f(" + "(" * 5_000 + ")]", "[f(" + "(" * 5_000 + ")]", []),
        ("[f(x=" + "-" * 60_000 + "1)]", "[f(x=" + "-" * 60_000 + "1)]", []),
        ('<|python_tag|>brave_search.call(query="π")', "", [("brave_search", {"query": "π"})]),
        ("<|python_tag|>print(1)\n", "", [("code_interpreter", {"code": "print(1)"})]),
        ("<|python_tag|>", "<|python_tag|>", []),
        ('<function=f>{"n": 10}</function>', "", [("f", {"n": 10})]),
        ('<function=f>{"n": 10</function>', '<function=f>{"n": 10</function>', []),
        ('<function=f>[1]</function> so', '<function=f>[1]</function> so', []),
        ('[{"name": "f", "arguments": {}}, 3]', '[{"name": "f", "arguments": {}}, 3]', []),
    ],
)  # fmt: skip
def test_parse_reply(text: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    expected = Message("assistant", content, tuple(ToolCall(name, arguments) for name, arguments in calls))
    assert parse_reply(text) == expected


def test_calls_of_mistral_keep_their_ids() -> None:
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdef123"}, {"name": "g", "arguments": {}}]'
    assert parse_reply(text).tool_calls == (ToolCall("f", {"a": 1}, "abcdef123"), ToolCall("g", {}))
    assert parse_reply("[TOOL_CALLS] [{}]") == Message("assistant", "[TOOL_CALLS] [{}]")
