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


def test_tools_take_nothing_from_a_conversation() -> None:
    given = Conversation((Message("user", "hi"),), template_variables={"enable_thinking": False})
    assert conversation(given, [TOOL]) == Conversation(given.messages, (TOOL,), given.template_variables)
    assert conversation(given) is given


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
        ('[{"role": "user", "content": "\\ud83d"}]', r"messages\[0\].content: holds half of a UTF-16 pair"),
        ('["hi"]', r"messages\[0\]: wanted an object, met 'hi'"),
        ('[{"role": "user", "content": "x"}, {"role": "bot", "content": "x"}]',
         r"messages\[1\].role: unknown role 'bot'"),
        ('[{"role": "user"}]', r"messages\[0\].content: is missing"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', r"content\[0\]: wanted a part of type text"),
        ('[{"role": "assistant", "tool_calls": "x"}]', r"messages\[0\].tool_calls: is text that is not JSON"),
        ('[{"role": "assistant", "tool_calls": [{}]}]', r"tool_calls\[0\]: wanted a call with a name"),
        ('[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]',
         "arguments: is text that is not JSON"),
        ('[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]',
         r"arguments: wanted an object of arguments, met"),
        ('[{"role": "user", "content": "x", "name": 3}]', r"messages\[0\].name: wanted text, met 3"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": ["f"]}', r"tools\[0\]: wanted a function"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        read_conversation("m.json", text)
    assert "\n" not in str(error.value)
