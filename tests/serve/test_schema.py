"""What a request may hold: every field is checked, what is not known is refused, and errors name the field."""

from __future__ import annotations

from typing import Any

import pytest

from whippet.serve.body import parse
from whippet.serve.errors import ApiError
from whippet.serve.messages import read_messages
from whippet.serve.schema import CHAT, COMPLETION, IGNORED, read_chat, read_completion

CHAT_MIN = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TEXT_MIN = {"model": "m", "prompt": "x"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
NAMED = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def refusal(read: Any, value: Any) -> ApiError:
    with pytest.raises(ApiError) as told:
        read(value)
    assert told.value.status == 400
    return told.value


def test_what_is_not_said_stays_open() -> None:
    asked = read_chat(CHAT_MIN)
    assert (asked.n, asked.stream, asked.sampling, asked.top, asked.include_usage) == (1, False, {}, None, False)
    assert (asked.tools, asked.tool_choice, asked.response_format) == ((), "none", "text")
    text = read_completion(TEXT_MIN)
    assert (text.prompts, text.n, text.sampling, text.top, text.echo) == (
        ("x",),
        1,
        {"max_new_tokens": 16},
        None,
        False,
    )


def test_everything_at_once() -> None:
    given = CHAT_MIN | {
        "temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {"5": -100, "7": 1.5}, "seed": -1, "n": 2, "stop": "a",
        "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 9, "tools": [TOOL],
        "tool_choice": NAMED, "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 4,
        "response_format": {"type": "text"}, "modalities": ["text"], "chat_template_kwargs": {"a": 1},
    }  # fmt: skip
    assert set(given) | set(IGNORED) | {"max_tokens"} == set(CHAT)
    asked = read_chat(given)
    assert asked.sampling == {
        "temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {5: -100, 7: 1.5}, "seed": 2**63 - 1, "stop": ("a",),
        "max_new_tokens": 9,
    }  # fmt: skip
    assert (asked.n, asked.stream, asked.include_usage, asked.top) == (2, True, True, 4)
    assert (asked.tool_choice, asked.tool_name, asked.parallel_tool_calls) == ("named", "f", False)
    assert asked.tools == ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)
    assert asked.template_variables == {"a": 1}


def test_null_is_as_if_it_were_not_there() -> None:
    open_fields = {key: None for key in CHAT if key not in CHAT_MIN}
    assert read_chat(CHAT_MIN | open_fields) == read_chat(CHAT_MIN)
    closed = {key: None for key in COMPLETION if key not in TEXT_MIN}
    assert read_completion(TEXT_MIN | closed | {"suffix": None}) == read_completion(TEXT_MIN)
    assert read_chat(CHAT_MIN | {"functions": None, "audio": None}) == read_chat(CHAT_MIN)


def test_harmless_fields_are_taken() -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s"}
    assert read_chat(CHAT_MIN | harmless) == read_chat(CHAT_MIN)
    assert read_completion(TEXT_MIN | harmless) == read_completion(TEXT_MIN)
    assert refusal(read_chat, CHAT_MIN | {"store": "yes"}).param == "store"


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"model": None}, "model", "is missing"),
        ({"model": 3}, "model", "wanted a text, met 3"),
        ({"messages": "hi"}, "messages", "wanted a list"),
        ({"messages": ["hi"]}, "messages[0]", "wanted an object"),
        ({"n": 0}, "n", "0 is out of range, wanted 1 to 64"),
        ({"n": 10**40}, "n", "more than 30 digits"),
        ({"n": 1.0}, "n", "wanted a whole number, met 1.0"),
        ({"n": True}, "n", "met true"),
        ({"temperature": "hot"}, "temperature", "wanted a number, met 'hot'"),
        ({"temperature": -0.1}, "temperature", "wanted 0 to 2"),
        ({"temperature": 10**400}, "temperature", "wanted 0 to 2"),
        ({"top_p": 0}, "top_p", "wanted above 0 to 1"),
        ({"top_k": -1}, "top_k", "wanted 0 to"),
        ({"repetition_penalty": 0}, "repetition_penalty", "wanted above 0"),
        ({"presence_penalty": 2.5}, "presence_penalty", "wanted -2 to 2"),
        ({"seed": 2**63}, "seed", "out of range"),
        ({"stop": ""}, "stop", "0 characters"),
        ({"stop": [1]}, "stop[0]", "wanted a text"),
        ({"stop": ["x"] * 17}, "stop", "17 items, wanted 0 to 16"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is no token id"),
        ({"logit_bias": {"²": 1}}, "logit_bias", "no token id"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "wanted -100 to 100"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "1025 keys"),
        ({"stream": 1}, "stream", "wanted true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use", "'include_usage'"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "another thing"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "wanted 0 to 20"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type", "wanted 'function'"),
        ({"tools": [TOOL, TOOL]}, "tools", "two functions are called 'f'"),
        ({"tools": [TOOL] * 129}, "tools", "129 items"),
        ({"tool_choice": "auto"}, "tool_choice", "there are no tools"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", "'none' or 'auto' or 'required'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice.function.name", "no tool is called 'g'"),
        ({"tools": [TOOL], "response_format": SCHEMA}, "response_format", "tools that may be called"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs it"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'"),
        ({"response_format": SCHEMA | {"type": "text"}}, "response_format.json_schema", "belongs to"),
        ({"functions": []}, "functions", "use tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"audio": {}}, "audio", "not supported"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"x" * 1000: 1}, "x" * 77 + "...", "not a field"),
        ({"prompt": "x"}, "prompt", "not a field"),
        ({"modalities": ["audio"]}, "modalities[0]", "wanted 'text'"),
    ],
)  # fmt: skip
def test_a_wrong_chat_names_the_field(changes: dict[str, Any], param: str, said: str) -> None:
    told = refusal(read_chat, CHAT_MIN | changes)
    assert told.param == param and said in told.message and len(told.message) < 1500


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"prompt": None}, "prompt", "is missing"),
        ({"prompt": []}, "prompt", "0 items"),
        ({"prompt": [[]]}, "prompt[0]", "0 items"),
        ({"prompt": [1, "x"]}, "prompt[1]", "whole number"),
        ({"prompt": ["x", True]}, "prompt[1]", "met true"),
        ({"prompt": [-1]}, "prompt[0]", "out of range"),
        ({"prompt": {"a": 1}}, "prompt", "wanted a text"),
        ({"prompt": ["x"] * 65}, "prompt", "65 items"),
        ({"prompt": ["x"] * 33, "n": 2}, "n", "33 prompts times 2 are more than 64 replies"),
        ({"suffix": "x"}, "suffix", "fills no gaps"),
        ({"best_of": 2}, "best_of", "equals n"),
        ({"echo": True, "logprobs": 1}, "echo", "not computed"),
        ({"logprobs": True}, "logprobs", "whole number"),
        ({"messages": []}, "messages", "not a field"),
        ({"max_completion_tokens": 4}, "max_completion_tokens", "not a field"),
    ],
)
def test_a_wrong_completion_names_the_field(changes: dict[str, Any], param: str, said: str) -> None:
    told = refusal(read_completion, TEXT_MIN | changes)
    assert told.param == param and said in told.message


@pytest.mark.parametrize("value", [None, [], "x", 3, {}])
def test_bodies_that_are_no_request(value: Any) -> None:
    refusal(read_chat, value), refusal(read_completion, value)


def test_messages_as_clients_send_them() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    empty = {"refusal": None, "annotations": [], "audio": None, "function_call": None}
    made = read_messages(
        [
            {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "hi", "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]} | empty,
            {"role": "tool", "content": "4", "tool_call_id": "call_1"},
        ]
    )
    assert [message.role for message in made] == ["developer", "user", "assistant", "tool"]
    assert made[0].content == "be brief" and made[1].name == "Ann" and made[3].tool_call_id == "call_1"
    assert made[2].tool_calls[0].arguments == {"a": 1} and made[2].tool_calls[0].id == "call_1"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages[0].content"),
        ({"content": "x"}, "messages[0].role"),
        ({"from": "human", "value": "x"}, "messages[0].from"),
        ({"role": "user", "content": "x", "weight": 1}, "messages[0].weight"),
        ({"role": "user", "content": "x", "audio": {"id": 1}}, "messages[0].audio"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "url": "y"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "tool_call", "value": "{}"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}] * 1025}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": "[]"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}, "custom": 1}]},
         "messages[0].tool_calls[0].custom"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
         "messages[0].tool_calls[0].arguments"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "messages[0]"),
        ({"role": "user", "content": "x", "tool_call_id": 3}, "messages[0].tool_call_id"),
    ],
)  # fmt: skip
def test_a_wrong_message_names_the_place(message: dict[str, Any], param: str) -> None:
    assert refusal(read_messages, [message]).param == param


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b"[-Infinity]", "-Infinity is no JSON"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 5000 + b"]", "not valid JSON"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'"\\ud800"', "half of a UTF-16 pair"),
        (b'{"\\uDC00 ": 1}', "half of a UTF-16 pair"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_bodies_that_are_no_json(raw: bytes, said: str) -> None:
    assert said in refusal(parse, raw).message


def test_whole_characters_are_taken() -> None:
    assert parse('["\\ud83d\\udc15", "\\\\ud800", "é"]'.encode()) == ["🐕", "\\ud800", "é"]
