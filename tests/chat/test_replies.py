"""Replies as calls, in the forms that models write them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from helpers_replies import jumbles

from whippet.chat.messages import Message, ToolCall
from whippet.chat.replies import Parsed, parse_reply, read_reply

END = "</tool_call>"
TWO_CALLS = "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in "fg")
THOUGHT = '<think>a <tool_call>{"name": "g", "arguments": {}}</tool_call></think>'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
        ('<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
        ('<tool_call>\n{"name": "f", "arguments": {"a": "</x>"}}\n</tool_call>', "", [("f", {"a": "</x>"})]),
        ('Let me.\n<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "Let me.", [("f", {"a": 1})]),
        (TWO_CALLS, "", [("f", {}), ("g", {})]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "", [("f", {"a": END})]),
        ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', "", [("f", {}), ("g", {})]),
        ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}\n', "", [("f", {}), ("g", {})]),
        ('{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}', "", [("f", {"a": 1})]),
        ('<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", {}), ("g", {})]),
        ('<|python_tag|>[f(city="San Francisco")]', "", [("f", {"city": "San Francisco"})]),
        ("<|python_tag|>[f(1) for f in fs]", "", [("code_interpreter", {"code": "[f(1) for f in fs]"})]),
        ('See:\n<|python_tag|>x.call(query="y")', "See:", [("x", {"query": "y"})]),
        ('Now <function=f>{}</function>\n<function=g>{"a": "</function>"}</function>', "Now",
         [("f", {}), ("g", {"a": "</function>"})]),
        ('Hm. [TOOL_CALLS][{"name": "f", "arguments": {"a": "[TOOL_CALLS]"}}]', "Hm.", [("f", {"a": "[TOOL_CALLS]"})]),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', "", [("f", {"a": 1}), ("g", {})]),
        (THOUGHT + '\n\n{"name": "f", "arguments": {}}', THOUGHT, [("f", {})]),
        (' Yes.\n<tool_call>{"name": "f", "arguments": {}}</tool_call> Then', " Yes. Then", [("f", {})]),
        ("[f(city='San Francisco', n=-1.5), g()]", "", [("f", {"city": "San Francisco", "n": -1.5}), ("g", {})]),
        ("[a.f(x=[1, {'k': None}])]", "", [("a.f", {"x": [1, {"k": None}]})]),
        ('[f(x="""a\n"b" c""", y=(1,), z=(2), w=())]', "", [("f", {"x": 'a\n"b" c', "y": [1], "z": 2, "w": []})]),
        (r"[f(x='\x41\u00e9\101\q\n', y=1_000, z=true, u=null, v=.5,),]", "",
         [("f", {"x": "A\u00e9A\\q\n", "y": 1000, "z": True, "u": None, "v": 0.5})]),
        ('<|python_tag|>brave_search.call(query="π")', "", [("brave_search", {"query": "π"})]),
        ("<|python_tag|>print(1)\n", "", [("code_interpreter", {"code": "print(1)"})]),
        ("<|python_tag|>" + "[" * 100_000, "", [("code_interpreter", {"code": "[" * 100_000})]),
        ('<function=f>{"n": 10}</function>', "", [("f", {"n": 10})]),
    ],
)  # fmt: skip
def test_replies_with_calls(text: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    expected = Message("assistant", content, tuple(ToolCall(name, arguments) for name, arguments in calls))
    assert read_reply(text) == Parsed(expected, None)
    assert parse_reply(text) == expected


def test_calls_of_mistral_keep_their_ids() -> None:
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdef123"}, {"name": "g", "arguments": {}}]'
    assert parse_reply(text).tool_calls == (ToolCall("f", {"a": 1}, "abcdef123"), ToolCall("g", {}))
    newer = '[TOOL_CALLS]f[CALL_ID]abcdef123[ARGS]{"a": 1}'
    assert parse_reply(newer).tool_calls == (ToolCall("f", {"a": 1}, "abcdef123"),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("plain text", None),
        (" spaces kept ", None),
        ("[1]", None),
        ("[" * 100_000, None),
        ('{"name": "Bob", "age": 3}', None),
        ('{"name": "f"}', None),
        ('<think>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>', None),
        ('{"name": "f", "parameters": {"a": 1}', "JSON is broken at character 36: Expecting ',' delimiter"),
        ('{"name": "f", "parameters": {', "JSON is broken"),
        ('{"name": "f", "parameters": {}} so', "JSON is broken"),
        ('{"name": "f", "parameters": [1]}', "f: parameters is a list, wanted an object"),
        ('{"name": "f", "arguments": "{} {}"}', "a text with more in it than one JSON value"),
        ('{"name": 3, "parameters": {}}', "it names no function"),
        ('[{"name": "f", "arguments": {}}, 3]', "wanted an object with a name and arguments, met a number"),
        ('<tool_call>{"name": "f"}</tool_call>', "f: it has no arguments"),
        ('<tool_call>{"name": "f", "arguments": {}}', "f: wanted </tool_call> after its arguments"),
        ("<tool_call>broken</tool_call>", "no call follows <tool_call>"),
        ('<function=f>{"n": 10</function>', "JSON is broken"),
        ("<function=f>[1]</function> so", "no call follows <function="),
        ("[TOOL_CALLS] f()", "JSON is broken"),
        ("[TOOL_CALLS] [{}]", "it names no function"),
        ("[TOOL_CALLS] []", "the list of calls is empty"),
        ("<|python_tag|>", "nothing follows <|python_tag|>"),
        ("[f(x=g())]", "wanted a text, a number, True, False, None, a list or a dictionary at character 5"),
        ("[f(1)]", "wanted an argument with its name at character 3"),
        ("[f(**x)]", "wanted an argument with its name"),
        ("[f(x=1, x=2)]", "the argument x is given twice"),
        ("[f(x={1, 2})]", "wanted a text as a key"),
        ("[f(x={'a': 1)]", "wanted ','"),
        ("[f(x=1), 2]", "wanted the name of a function"),
        ("[f(x=1)] so", "followed by text"),
        ("[f(x='a)]", "a text without its end"),
        ("[f(x=1e999)]", "not finite"),
        ("[f(x=" + "9" * 400 + ")]", "too many digits"),
        (r"[f(x='\U00110000')]", "is no character"),
        (r"[f(x='\N{DIGIT ONE}')]", "is not read"),
        (r"[f(x='\ud800')]", "half of a UTF-16 pair"),
        ("[f(" + "(" * 5_000 + ")]", "wanted an argument"),
        ("[f(x=" + "-" * 60_000 + "1)]", "wanted a text, a number"),
        ("[f(x=" + "[" * 100 + "]" * 100 + ")]", "deeper than 64"),
        ('{"name": "f", "parameters": {"a": ' + "[" * 100 + "]" * 100 + "}}", "deeper than 64"),
        ('{"name": "f", "parameters": {"a": NaN}}', "NaN is no JSON"),
        ('{"name": "f", "parameters": {"a": 1e999}}', "not finite"),
        ('{"name": "f", "parameters": {"a": "\\ud800"}}', "half of a UTF-16 pair"),
        ('{"name": "f", "parameters": {"a": {"\\ud800": 1}}}', "half of a UTF-16 pair"),
    ],
)
def test_a_malformed_call_is_text_and_a_reason(text: str, reason: str | None) -> None:
    parsed = read_reply(text)
    assert parsed.message == Message("assistant", text)
    assert parsed.trouble is None if reason is None else reason in str(parsed.trouble)


@pytest.mark.parametrize(
    ("text", "content", "names", "trouble"),
    [
        ('{"name": "f", "parameters": {}}', "", ["f"], None),
        ('{"name": "x", "parameters": {}}', None, [], "no tool is called 'x'"),
        ('{"name": "Bob", "parameters": 3}', None, [], None),
        ('{"name": "f", "parameters": 3}', None, [], "parameters is a number"),
        ("[x(1)]", None, [], None),
        ("[f(1)]", None, [], "wanted an argument with its name"),
        ('<tool_call>{"name": "x", "arguments": {}}</tool_call>', None, [], "no tool is called 'x'"),
        ("<|python_tag|>print(1)", None, [], "no tool is called 'code_interpreter'"),
        ('I look.\n  {"name": "f", "parameters": {}}', "I look.", ["f"], None),
        ("I look.\n[f(), g(x=1)]", "I look.", ["f", "g"], None),
        ('I look: {"name": "f", "parameters": {}}', None, [], None),
        ("As in [f() of g].", None, [], None),
    ],
)
def test_only_known_tools_are_called(text: str, content: str | None, names: list[str], trouble: str | None) -> None:
    """Where the tools are known, bare calls are also found after text."""
    parsed = read_reply(text, {"f", "g"})
    assert [call.name for call in parsed.message.tool_calls] == names
    assert parsed.message.content == (text if content is None else content)
    assert parsed.trouble is None if trouble is None else trouble in str(parsed.trouble)


@pytest.mark.parametrize("number", [4_000, pytest.param(400_000, marks=pytest.mark.long)])
def test_no_jumble_is_an_error(number: int) -> None:
    """Each is a message that can be written as JSON, and without calls it is the text as it stands."""
    called = 0
    for text in jumbles(number):
        for names in (None, {"f"}):
            message = read_reply(text, names).message
            called += bool(message.tool_calls)
            assert message.tool_calls or message.content == text
            json.dumps(message.as_openai(), allow_nan=False, ensure_ascii=False).encode()
    assert called > number / 200


HUGE = 100_000
BOMBS = ("<tool_call>{", "<tool_call> ", '{"name":', "<function=f>{}", "<function=", "[f(", "[f(x=", "[f(x='\\", "\n{",
         "x=1,", "'''", "[TOOL_CALLS]", '[TOOL_CALLS][{"name":"f","arguments":{}}]', '{"name":"f","arguments":{}};',
         "<|python_tag|>", "<think>", "</thin", "[a.", " ", "\n", "9", "-", "(", "{", "[", "\\x41")  # fmt: skip


def test_huge_replies_are_quick() -> None:
    began = time.process_time()
    for start in ("", "<tool_call>", "<function=f", "[f(x=", "[f(x='", '{"name": "f", "arguments": {"a": '):
        for bomb in BOMBS:
            for names in (None, {"f"}):
                read_reply(start + bomb * (HUGE // len(bomb)), names)
    assert time.process_time() - began < 6
