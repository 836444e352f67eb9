"""Records to examples in every form, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from whippet.chat.messages import Completion, Conversation, Document, Message, ToolCall
from whippet.data.formats import detect, parse
from whippet.data.turns import EMPTY, RecordError
from whippet.errors import DataError

USER, ASSISTANT = Message("user", "q"), Message("assistant", "a")
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
KWARGS = "chat_template_kwargs"


def chat(*messages: Message, tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    return Conversation(messages, tools)


def failure(value: Any, form: Any) -> tuple[str, str]:
    with pytest.raises(RecordError) as error:
        parse(value, form)
    return error.value.field, error.value.reason


@pytest.mark.parametrize(
    ("record", "form"),
    [
        ({"messages": CHAT}, "messages"),
        ({"messages": CHAT, "tools": None, "id": 3}, "messages"),
        ({"conversations": CHAT}, "messages"),
        ({"messages": json.dumps(CHAT)}, "messages"),
        ({"conversations": SHAREGPT, "tools": "[]"}, "sharegpt"),
        ({"messages": SHAREGPT}, "sharegpt"),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca"),
        ({"instruction": "q", "output": "a", "category": "x"}, "alpaca"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt_completion"),
        ({"text": "t", "meta": {}}, "text"),
        ({"text": "t", "messages": None}, "text"),
    ],
)
def test_each_form_is_found_and_read(record: dict[str, Any], form: str) -> None:
    detected = detect([record, record], "f")
    assert detected.format == form
    assert detected.why.startswith("the first 2 records have '")
    parse(record, detected.format)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"question": "q", "answer": "a"}], "unknown; keys met: 'question', 'answer'. Known forms: messages {"),
        ([{"instruction": "q", "output": "a", "text": "t"}], "more than one form (alpaca or text)"),
        ([{"text": "t"}, {"messages": CHAT}], "more than one form (text and messages)"),
        ([{"messages": []}], "unknown; keys met: 'messages'"),
        ([{"messages": "not JSON"}], "unknown; keys met: 'messages'"),
        (["a", 3], "no object with keys"),
        ([], "unknown"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}], "are preferences ('chosen', 'prompt', 'rejected')"),
        ([{"messages": CHAT, "label": True}], "are preferences"),
    ],
)
def test_what_cannot_be_told(records: list[Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        detect(records, "file.json")
    assert said in str(error.value) and str(error.value).startswith("file.json: ")


def test_some_odd_records_do_not_hide_the_form() -> None:
    assert detect([{"x": 1}, {"instruction": "q"}, {"instruction": "q", "output": "a"}, 7], "f").format == "alpaca"


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"instruction": "q", "input": "i", "output": "a"}, chat(Message("user", "q\ni"), ASSISTANT)),
        ({"instruction": "q", "input": None, "output": "a"}, chat(USER, ASSISTANT)),
        ({"instruction": "", "input": "q", "output": "a"}, chat(USER, ASSISTANT)),
        ({"instruction": "q", "output": "a", "system": "s"}, chat(Message("system", "s"), USER, ASSISTANT)),
        ({"instruction": "q", "output": "a", "history": [["q1", "a1"], ["q2", "a2"]]},
         chat(Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"), Message("assistant", "a2"),
              USER, ASSISTANT)),
        ({"instruction": "q", "output": "a", "history": '[["q1", "a1"]]'},
         chat(Message("user", "q1"), Message("assistant", "a1"), USER, ASSISTANT)),
    ],
)  # fmt: skip
def test_alpaca(record: dict[str, Any], wanted: Conversation) -> None:
    assert parse(record, "alpaca") == wanted


def test_sharegpt_with_tools() -> None:
    record = {
        "system": "s",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "[2]"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([FUNCTION]),
    }
    assert parse(record, "sharegpt") == chat(
        Message("system", "s"),
        USER,
        Message("assistant", "", (ToolCall("f", {"x": 1}),)),
        Message("tool", "[2]"),
        ASSISTANT,
        tools=(TOOL,),
    )


def test_openai_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "ü"}'}}
    record = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "name": "bob", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "tool_call_id": "c1", "content": "r"},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "assistant", "content": "a", "weight": 1, "tool_calls": None},
        ],
        "tools": [TOOL],
    }
    assert parse(record, "messages") == chat(
        Message("developer", "s"),
        Message("user", "q?", name="bob"),
        Message("assistant", "", (ToolCall("f", {"x": "ü"}, "c1"),)),
        Message("tool", "r", tool_call_id="c1"),
        Message("assistant", "no", weight=0.0),
        Message("assistant", "a", weight=1.0),
        tools=(TOOL,),
    )


def test_older_openai_function_calls() -> None:
    record = {
        "messages": [
            CHAT[0],
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "r"},
        ]
    }
    assert parse(record, "messages") == chat(
        USER, Message("assistant", "", (ToolCall("f", {}),)), Message("tool", "r", name="f")
    )


def test_typed_parts_with_values() -> None:
    record = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "hm"},
                    {"type": "text", "value": "so"},
                    {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                ],
                "loss_weight": 0.5,
            },
        ]
    }
    calling = Message("assistant", "<think>\nhm\n</think>\n\nso", (ToolCall("f", {"x": 1}),), weight=0.5)
    assert parse(record, "messages") == chat(USER, calling)
    beside = {"messages": [CHAT[0], {"role": "assistant", "content": "so", "reasoning_content": "hm"}]}
    assert parse(beside, "messages") == chat(USER, Message("assistant", "<think>\nhm\n</think>\n\nso"))


def test_prompt_completion() -> None:
    assert parse({"prompt": "q ", "completion": "a"}, "prompt_completion") == Completion("q ", "a")
    assert parse({"prompt": "", "completion": "a"}, "prompt_completion") == Completion("", "a")
    record = {"prompt": [*CHAT, CHAT[0]], "completion": [CHAT[1]]}
    earlier = Message("assistant", "a", weight=0.0)
    assert parse(record, "prompt_completion") == chat(USER, earlier, USER, ASSISTANT)


def test_text() -> None:
    assert parse({"text": " t\n"}, "text") == Document(" t\n")


@pytest.mark.parametrize(
    ("record", "form", "field", "reason"),
    [
        (7, "alpaca", "", "wanted an object with keys, met int"),
        ({"instruction": "q"}, "alpaca", "output", "is missing"),
        ({"instruction": "q", "output": None}, "alpaca", "output", "is missing"),
        ({"instruction": "q", "output": " \n"}, "alpaca", "output", EMPTY),
        ({"instruction": "q", "output": 3}, "alpaca", "output", "wanted text, met 3"),
        ({"instruction": "", "input": "", "output": "a"}, "alpaca", "instruction", "is empty, and so is 'input'"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "alpaca", "history[0]", "wanted a pair"),
        ({"instruction": "q", "output": "a", "history": {"q": "a"}}, "alpaca", "history", "wanted a list of pairs"),
        ({"instruction": "q", "output": "a", "history": "x"}, "alpaca", "history", "is text that is not JSON"),
        ({"instruction": "q", "output": "\ud800"}, "alpaca", "output", "holds half of a UTF-16 pair"),
        ({}, "messages", "messages", "is missing"),
        ({"messages": []}, "messages", "messages", "wanted a list of turns, met []"),
        ({"messages": {"role": "user"}}, "messages", "messages", "wanted a list of turns"),
        ({"messages": ["hi"]}, "messages", "messages[0]", "wanted an object, met 'hi'"),
        ({"messages": CHAT[:1]}, "messages", "messages", "no assistant turn"),
        ({"messages": CHAT[1:]}, "messages", "messages", "no user turn"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages", "messages[0].role",
         "unknown role 'bot'; known: system, developer, user, assistant, tool"),
        ({"messages": [{"content": "x"}]}, "messages", "messages[0].role", "unknown role None"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages", "messages[0].role", "unknown role ['user']"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": ""}]}, "messages", "messages[1]", EMPTY),
        ({"messages": [*CHAT, CHAT[0], {"role": "assistant", "content": None}]}, "messages", "messages[3]", EMPTY),
        ({"messages": [{"role": "user"}, CHAT[1]]}, "messages", "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": 7}, CHAT[1]]}, "messages", "messages[0].content", "wanted text or"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, CHAT[1]]}, "messages",
         "messages[0].content[0]", "wanted a part of type text, reasoning or tool_call, met {'type': 'image_url'}"),
        ({"messages": [{"role": "user", "content": "q", "loss_weight": 1.0}, CHAT[1]]}, "messages",
         "messages[0].loss_weight", "1.0 on a turn of user; only the assistant's"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": True}]}, "messages", "messages[1].weight", "wanted a number"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": -1}]}, "messages", "messages[1].weight", "wanted a number"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": float("nan")}]}, "messages", "messages[1].weight", "wanted a"),
        ({"messages": [{**CHAT[0], "tool_calls": [FUNCTION]}, CHAT[1]]}, "messages", "messages[0]", "a tool call by"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]}, "messages",
         "messages[1].tool_calls[0]", "wanted a call with a name"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "messages",
         "messages[1].tool_calls[0].arguments", "is text that is not JSON"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]}, "messages",
         "messages[1].tool_calls[0].arguments", "wanted an object of arguments, met [1]"),
        ({"messages": CHAT, "tools": "{"}, "messages", "tools", "is text that is not JSON"),
        ({"messages": CHAT, "tools": {"a": 1}}, "messages", "tools", "wanted a list of functions"),
        ({"messages": CHAT, "tools": [{"type": "function"}]}, "messages", "tools[0]", "wanted a function with a name"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "sharegpt", "conversations[0].from",
         "unknown speaker 'alien'"),
        ({"conversations": [SHAREGPT[0], {"from": "gpt", "value": ""}]}, "sharegpt", "conversations[1]", EMPTY),
        ({"conversations": [SHAREGPT[0], {"from": "gpt"}]}, "sharegpt", "conversations[1].value", "is missing"),
        ({"conversations": [SHAREGPT[0], {"from": "function_call", "value": "f()"}]}, "sharegpt",
         "conversations[1].value", "is text that is not JSON"),
        ({"messages": CHAT, "chat_template_kwargs": [1]}, "messages", KWARGS, "wanted an object of names"),
        ({"messages": CHAT, "chat_template_kwargs": "{"}, "messages", KWARGS, "is text that is not JSON"),
        ({"messages": CHAT, "chat_template_kwargs": {"a": "\ud800"}}, "messages", f"{KWARGS}.a", "holds half"),
        ({"prompt": "q", "completion": "a", "chat_template_kwargs": {"a": 1}}, "prompt_completion", KWARGS,
         "is for a chat template"),
        ({"prompt": "q"}, "prompt_completion", "completion", "is missing"),
        ({"prompt": "q", "completion": ""}, "prompt_completion", "completion", EMPTY),
        ({"prompt": "q", "completion": CHAT[1:]}, "prompt_completion", "completion", "wanted text, met [{"),
        ({"prompt": CHAT[:1], "completion": CHAT[:1]}, "prompt_completion", "completion", "no assistant turn"),
        ({"text": ""}, "text", "text", "is empty"),
        ({"text": 3}, "text", "text", "wanted text, met 3"),
        ({"txt": "a"}, "text", "text", "is missing"),
    ],
)  # fmt: skip
def test_bad_records_name_field_and_reason(record: Any, form: str, field: str, reason: str) -> None:
    met = failure(record, form)
    assert met[0] == field and met[1].startswith(reason), met


@pytest.mark.parametrize("record", [{"messages": CHAT}, {"instruction": "q", "output": "a"},
                                    {"prompt": CHAT[:1], "completion": CHAT[1:]}])  # fmt: skip
def test_what_a_record_tells_its_template(record: dict[str, Any]) -> None:
    """As an object or its JSON; nulls, which tables fill up with, are no values."""
    form = detect([record], "f").format
    plain = parse(record, form)
    told = {"enable_thinking": False, "documents": None}
    for value in (told, json.dumps(told)):
        found = parse({**record, "chat_template_kwargs": value}, form)
        assert found == replace(plain, template_variables={"enable_thinking": False})
    for value in (None, {}, "", {"a": None}):
        assert parse({**record, "chat_template_kwargs": value}, form) == plain


def test_an_empty_turn_that_is_not_trained_may_stay() -> None:
    record = {"messages": [CHAT[0], {"role": "assistant", "content": "", "weight": 0}, *CHAT]}
    assert isinstance(parse(record, "messages"), Conversation)
