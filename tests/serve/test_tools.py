"""Tool calls and replies of a given form, through OpenAI's client: whole and as streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_serve import Running, running, scripted

from whippet.infer import grammar
from whippet.infer.model import Model

openai = pytest.importorskip("openai")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
ASK = [{"role": "user", "content": "What is the weather in Lima?"}]
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Lima"}}</tool_call>'
ID = re.compile(r"[A-Za-z0-9]{9}")
"""What Mistral's templates take."""


@pytest.fixture
def says(tiny: Model) -> Any:
    """A client of a server whose every reply is the given text."""
    made: list[Any] = []

    def start(text: str) -> Any:
        server = running(scripted(tiny, text))
        made.append(server)
        return server.__enter__().client()

    yield start
    for server in made:
        server.__exit__(None, None, None)


def streamed(client: Any, **asked: Any) -> tuple[str, list[tuple[str, str, str]], list[str]]:
    """Content, calls (id, name, arguments) and reasons of the end of the first reply, joined as clients join them."""
    content, finishes, calls = "", [], {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        finishes += [choice.finish_reason] if choice.finish_reason else []
        for part in choice.delta.tool_calls or ():
            call = calls.setdefault(part.index, ["", "", ""])
            call[0] += part.id or ""
            call[1] += part.function.name or ""
            call[2] += part.function.arguments or ""
    assert list(calls) == list(range(len(calls)))
    return content, [tuple(call) for call in calls.values()], finishes


def test_a_model_calls_a_tool_and_reads_what_it_said(server: Running) -> None:
    client = server.client()
    asked = {"model": "tiny", "messages": ASK, "tools": [WEATHER], "temperature": 0}
    reply = client.chat.completions.create(**asked).choices[0]
    (call,) = reply.message.tool_calls
    assert reply.finish_reason == "tool_calls" and reply.message.content is None
    assert (call.type, call.function.name) == ("function", "get_weather") and ID.fullmatch(call.id)
    assert json.loads(call.function.arguments) == {"city": "Lima"}
    content, calls, finishes = streamed(client, **asked)
    assert content == "" and finishes == ["tool_calls"]
    assert [(name, json.loads(arguments)) for _, name, arguments in calls] == [("get_weather", {"city": "Lima"})]
    turns = [*ASK, reply.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = client.chat.completions.create(**asked | {"messages": turns}).choices[0]
    assert after.finish_reason == "stop" and after.message.content and not after.message.tool_calls


@pytest.mark.parametrize("text", ["I will look. " + CALL, CALL, CALL + " " + CALL, "a < b and <tool or " + CALL])
def test_calls_and_what_is_said_beside_them(says: Any, text: str) -> None:
    client = says(text)
    asked = {"model": "model", "messages": ASK, "tools": [WEATHER]}
    reply = client.chat.completions.create(**asked).choices[0]
    said, count = text.replace(CALL, "").strip(), text.count(CALL)
    assert (reply.message.content or "") == said and len(reply.message.tool_calls) == count
    assert len({call.id for call in reply.message.tool_calls}) == count and reply.finish_reason == "tool_calls"
    content, calls, finishes = streamed(client, **asked)
    assert content.strip() == said and finishes == ["tool_calls"]
    assert [(name, json.loads(a)) for _, name, a in calls] == [("get_weather", {"city": "Lima"})] * count
    assert all(ID.fullmatch(one) for one, _, _ in calls) and len({one for one, _, _ in calls}) == count
    single = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    assert len(single.message.tool_calls) == 1
    assert len(streamed(client, **asked, parallel_tool_calls=False)[1]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        CALL.replace("get_weather", "rm_rf"),
        CALL.replace("}}", "}"),
        CALL[:40],
        "<tool_call> is how I call tools",
        '{"name": "get_weather"}',
        '{"a": [1, 2]}',
        "<",
    ],
)
def test_what_is_no_call_stays_text(says: Any, text: str) -> None:
    client = says(text)
    asked = {"model": "model", "messages": ASK, "tools": [WEATHER]}
    reply = client.chat.completions.create(**asked).choices[0]
    assert reply.message.content == text and reply.message.tool_calls is None and reply.finish_reason == "stop"
    assert streamed(client, **asked) == (text, [], ["stop"])


def test_calls_are_not_looked_for_where_there_are_no_tools(says: Any) -> None:
    client = says(CALL)
    for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        asked = {"model": "model", "messages": ASK, **more}
        reply = client.chat.completions.create(**asked).choices[0]
        assert reply.message.content == CALL and reply.message.tool_calls is None
        assert streamed(client, **asked) == (CALL, [], ["stop"])


def test_the_model_is_not_told_of_tools_that_it_may_not_call(server: Running) -> None:
    sizes = [
        server.chat(max_tokens=1, **more)[1]["usage"]["prompt_tokens"]
        for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": [WEATHER]})
    ]
    assert sizes[0] == sizes[1] < sizes[2]
    model = server.served.model
    wanted = model.prompt_ids([{"role": "user", "content": "What is 37 + 45?"}], tools=[WEATHER])
    assert sizes[2] == len(wanted)


def test_content_comes_before_the_reply_ends(tiny: Model) -> None:
    """Only what may yet become a call is held back."""
    served = scripted(tiny, "one two three four five six seven eight " + CALL)
    with running(served) as made:
        chunks = list(made.client().chat.completions.create(model="model", messages=ASK, tools=[WEATHER], stream=True))
        pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
        assert len(pieces) >= 8 and "".join(pieces).strip() == "one two three four five six seven eight"


def test_tools_that_the_template_does_not_show_are_refused(tiny_checkpoint: Any) -> None:
    import whippet

    model = whippet.load(tiny_checkpoint, base="fp32", device="cpu")
    with running(scripted(model, "hello")) as made:
        status, told = made.chat("x", tools=[WEATHER])
        assert status == 400 and told["error"]["param"] == "tools" and "does not tell it of tools" in str(told)
        assert made.chat("x", tools=[WEATHER], tool_choice="none")[0] == 200


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def bound(server: Running) -> Iterator[Any]:
    """The client, where grammars can be had."""
    pytest.importorskip("llguidance")
    yield server.client()


@pytest.mark.parametrize("seed", [1, 2])
def test_json_that_keeps_to_a_schema(bound: Any, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    asked = {"model": "tiny", "messages": ASK, "response_format": form, "temperature": 1.5, "seed": seed}
    reply = bound.chat.completions.create(**asked, max_tokens=200).choices[0]
    value = json.loads(reply.message.content)
    assert reply.finish_reason == "stop" and set(value) == {"name", "age"} and 0 <= value["age"] <= 99
    assert streamed(bound, **asked, max_tokens=200)[0] == reply.message.content
    several = bound.chat.completions.create(**asked, max_tokens=200, n=3)
    assert all(set(json.loads(choice.message.content)) == {"name", "age"} for choice in several.choices)


def test_any_json_object(bound: Any) -> None:
    reply = bound.chat.completions.create(
        model="tiny", messages=ASK, response_format={"type": "json_object"}, temperature=0, max_tokens=100
    ).choices[0]
    assert reply.finish_reason == "length" or isinstance(json.loads(reply.message.content), dict)
    assert reply.message.content.lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
def test_a_call_that_is_forced(bound: Any, choice: Any) -> None:
    asked = {
        "model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "tools": [WEATHER, TIME],
        "tool_choice": choice, "temperature": 0, "max_tokens": 100,
    }  # fmt: skip
    reply = bound.chat.completions.create(**asked).choices[0]
    (call,) = reply.message.tool_calls
    assert reply.finish_reason == "tool_calls" and not reply.message.content
    assert call.function.name in (["get_weather", "get_time"] if choice == "required" else ["get_time"])
    assert isinstance(json.loads(call.function.arguments), dict)
    _, calls, finishes = streamed(bound, **asked)
    assert [(name, arguments) for _, name, arguments in calls] == [(call.function.name, call.function.arguments)]
    assert finishes == ["tool_calls"]


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1/x.json"}, {"pattern": "("}])
def test_a_schema_that_cannot_be_kept_to_is_refused(bound: Any, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as told:
        bound.chat.completions.create(model="tiny", messages=ASK, response_format=form)
    assert told.value.param == "response_format.json_schema.schema"


def test_schemas_that_would_take_too_long(bound: Any) -> None:
    """One, or those of some tools together."""
    long = {"type": "object", "properties": {"a": {"enum": ["x" * 150_000]}}}
    tools = [{"type": "function", "function": {"name": name, "parameters": long}} for name in "ab"]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["x" * 300_000]}}}
    for more in ({"response_format": form}, {"tools": tools, "tool_choice": "required"}):
        with pytest.raises(openai.BadRequestError, match="wanted at most 262144"):
            bound.chat.completions.create(model="tiny", messages=ASK, **more)


def test_a_schema_is_read_once_for_all_replies(bound: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    make = grammar.json_schema_grammar
    monkeypatch.setattr(grammar, "json_schema_grammar", lambda *args: read.append(args) or make(*args))
    schema = {"enum": ["x" * 20, "y", 37, "82 is the answer"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {"model": "tiny", "messages": ASK, "response_format": form, "temperature": 2.0, "seed": 1, "n": 16}
    choices = bound.chat.completions.create(**asked).choices
    replies = {json.loads(choice.message.content) for choice in choices}
    assert len(read) == 1 and len(replies) > 1 and replies <= set(schema["enum"])


def test_a_reply_that_could_not_be_held_to_its_schema_is_none(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whippet.infer.grammar.json_schema_grammar", lambda *_: SimpleNamespace(trouble="too deep"))
    form = {"type": "json_object"}
    with running(scripted(tiny, '{"a": ')) as made:
        status, told = made.chat(response_format=form)
        assert status == 400 and "could not be held to its schema: too deep" in told["error"]["message"]
        with pytest.raises(openai.APIError, match="too deep"):
            list(made.client().chat.completions.create(model="model", messages=ASK, response_format=form, stream=True))
