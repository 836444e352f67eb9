"""Messages from programs and files: what is accepted, and what each refusal names."""

from __future__ import annotations

import json

import pytest

from whippet.chat.messages import Conversation, Message, ToolCall
from whippet.errors import DataError
from whippet.infer.prompts import conversation, read_conversation

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def test_forms_that_mean_the_same() -> None:
    expected = Conversation((Message("user", "hi"),))
    for given in (
        "hi",
        [Message("user", "hi")],
        [{"role": "user", "content": "hi"}],
        expected,
        [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
    ):
        assert conversation(given) == expected  # fmt: skip
    assert conversation(expected, [TOOL]) == Conversation(expected.messages, (TOOL,))


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_tool_calls(arguments: object) -> None:
    messages = [
        {"role": "user", "content": "1+?"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}]},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
    ]  # fmt: skip
    made = conversation(messages, [TOOL])
    assert made.messages[1] == Message("assistant", "", (ToolCall("add", {"a": 1}, "c1"),))
    assert made.messages[2] == Message("tool", "2", tool_call_id="c1", name="add")
    assert conversation([message.as_openai() for message in made.messages], [TOOL]) == made


def test_files() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert read_conversation("m.json", json.dumps(messages)) == conversation("hi")
    assert read_conversation("m.json", json.dumps({"messages": messages, "tools": [TOOL]})).tools == (TOOL,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[\n{", "m.json:2: not valid JSON"),
        ("[" * 100_000, "m.json"),
        ("3", "m.json: wanted a list of messages"),
        ('{"messages": {}}', "wanted a list of messages"),
        ("[]", "m.json: messages: the list is empty"),
        ('["hi"]', r"messages\[0\] is 'hi', wanted an object"),
        ('[{"role": "user", "content": "x"}, {"role": "bot", "content": "x"}]', r"messages\[1\].role is 'bot', wanted"),
        ('[{"role": "user"}]', r"messages\[0\].content is None, wanted a text"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', r"content\[0\] is .*wanted"),
        ('[{"role": "assistant", "tool_calls": "x"}]', r"tool_calls is 'x', wanted a list"),
        ('[{"role": "assistant", "tool_calls": [{}]}]', r"tool_calls\[0\] is \{\}, wanted"),
        ('[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]',
         "arguments is not valid JSON"),
        ('[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]',
         r"arguments is \[\], wanted an object"),
        ('[{"role": "user", "content": "x", "name": 3}]', r"messages\[0\].name is 3, wanted a text"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": ["f"]}', r"tools\[0\] is 'f', wanted"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        read_conversation("m.json", text)
    assert "\n" not in str(error.value)
