"""Constrained replies: whatever is drawn keeps to the schema, and what cannot be kept to is refused with its place."""

from __future__ import annotations

import functools
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_chat import byte_tokenizer, real_tokenizer
from torch import Tensor

import whippet
from whippet.chat.messages import Message
from whippet.chat.render import make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.demo import MODEL
from whippet.errors import MissingExtra, UsageError
from whippet.infer.batching import Batcher
from whippet.infer.call_grammar import call_form, tool_call_grammar
from whippet.infer.grammar import LlGrammar, json_schema_grammar
from whippet.infer.requests import Request
from whippet.infer.sampling import Sampling

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": -5, "maximum": 99},
        "text": {"type": "string", "maxLength": 12},
        "words": {"type": "array", "items": {"enum": ["x", "é 🐕", None]}, "minItems": 1, "maxItems": 3},
        "deep": {"$ref": "#/$defs/deep"},
    },
    "required": ["n", "text", "words"],
    "additionalProperties": False,
    "$defs": {"deep": {"type": "object", "properties": {"sure": {"type": "boolean"}}, "additionalProperties": False}},
}
TAGS = {
    "hermes": frozenset({"<tool_call>", "</tool_call>"}),
    "mistral": frozenset({"[TOOL_CALLS]"}),
    "llama": frozenset[str](),
}
CITY = {"enum": ["Köln", "Oslo </tool_call>"]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "maximum": 9}},
                "required": ["city"],
                "additionalProperties": False,
                "$defs": {"city": CITY},
            },
        },
    },
    {"type": "function", "function": {"name": 'no "arguments"'}},
]


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer.load(MODEL)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """A real tokenizer by name, read once; '' is the bundled model's."""
    return functools.cache(lambda name: Tokenizer.load(real_tokenizer(name, tmp_path_factory) if name else MODEL))


def ids_of(mask: Tensor) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")).tolist()


def drawn(
    grammar: LlGrammar,
    tokenizer: Tokenizer,
    stop_ids: frozenset[int],
    seed: int,
    most: int = 400,
    tags: frozenset[str] = frozenset(),
) -> list[int]:
    """Tokens drawn evenly from those that may come, to the end; of added tokens only ``tags`` may."""
    draw = random.Random(seed)
    shut_out = {token_id for text, token_id in tokenizer.added_tokens.items() if text not in tags} - stop_ids
    ids: list[int] = []
    for _ in range(most):
        choices = ids_of(grammar.allowed())
        assert not shut_out & set(choices)
        assert (stop_ids <= set(choices)) == grammar.complete == bool(stop_ids & set(choices))
        token_id = draw.choice(choices)
        if token_id in stop_ids:
            break
        ids.append(token_id)
        grammar.accept(token_id)
    assert grammar.trouble is None and grammar.complete
    return ids


def check(value: Any) -> None:
    """By hand what the schema says."""
    assert set(value) - {"deep"} == {"n", "text", "words"}
    assert isinstance(value["n"], int) and -5 <= value["n"] <= 99
    assert isinstance(value["text"], str) and len(value["text"]) <= 12
    assert 1 <= len(value["words"]) <= 3 and set(value["words"]) <= {"x", "é 🐕", None}
    assert value.get("deep", {}) in ({}, {"sure": True}, {"sure": False})


def test_whatever_is_drawn_keeps_to_the_schema(tiny: Tokenizer) -> None:
    for seed in range(20):
        ids = drawn(json_schema_grammar(tiny, SCHEMA), tiny, tiny.stop_ids, seed)
        text = tiny.decode(ids)
        check(json.loads(text))
        assert text == json.dumps(json.loads(text), ensure_ascii="\\u" in text) or "\\" in text


def test_a_copy_goes_its_own_way_from_there(tiny: Tokenizer) -> None:
    one = json_schema_grammar(tiny, {"enum": ["left", "right"]})
    one.accept(tiny.encode('"')[0])
    other = one.copy()
    for grammar, word in ((one, "left"), (other, "right")):
        for letter in word + '"':
            assert not grammar.complete
            grammar.accept(next(i for i in ids_of(grammar.allowed()) if tiny.token_text(i) == letter))
    assert one.complete and other.complete
    other.accept(tiny.encode("x")[0])
    assert other.trouble is not None and one.trouble is None


@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "mistral-v0.3-instruct", "phi-3-mini"])
def test_tokenizers_of_all_kinds(name: str, load: Callable[[str], Tokenizer]) -> None:
    """Bytes, SentencePiece with pieces for bytes; what they spell is the same text."""
    tokenizer = load(name)
    ids = drawn(json_schema_grammar(tokenizer, SCHEMA), tokenizer, tokenizer.stop_ids, 0)
    check(json.loads(tokenizer.decode(ids)))
    began = time.perf_counter()
    json_schema_grammar(tokenizer, SCHEMA)
    assert time.perf_counter() - began < 0.1  # the vocabulary is read once


@pytest.mark.parametrize(
    ("name", "template", "form", "several"),
    [
        ("", None, "hermes", True),
        ("qwen2.5", None, "hermes", True),
        ("mistral-v0.3-instruct", None, "mistral", True),
        ("llama3", "llama-3.3", "llama", False),
    ],
)
def test_forced_calls_are_read_back(
    name: str, template: str | None, form: str, several: bool, load: Callable[[str], Tokenizer]
) -> None:
    """In each form: calls of known tools with arguments of their schema, by the tags' own tokens."""
    tokenizer = load(name)
    renderer = make_renderer(tokenizer, template)
    assert call_form(renderer) == form
    counts = set()
    for seed in range(6):
        ids = drawn(tool_call_grammar(renderer, TOOLS), tokenizer, renderer.stop_ids, seed, 4_000, TAGS[form])
        parsed = renderer.read(ids, TOOLS)
        assert parsed.trouble is None and parsed.message.content == ""
        for call in parsed.message.tool_calls:
            if call.name == "get_weather":
                assert call.arguments.pop("city") in CITY["enum"] and call.arguments.pop("days", 0) <= 9
            assert call.arguments == {}
        counts.add(len(parsed.message.tool_calls))
        assert {one for one in TAGS[form] if tokenizer.added_tokens.get(one) in ids} == TAGS[
            form
        ] & tokenizer.added_tokens.keys()
    assert 0 not in counts and (max(counts) > 1) == several
    alone = tool_call_grammar(renderer, TOOLS, 'no "arguments"', several=False)
    message = renderer.parse(drawn(alone, tokenizer, renderer.stop_ids, 0, tags=TAGS[form]), TOOLS)
    assert [(call.name, call.arguments) for call in message.tool_calls] == [('no "arguments"', {})]


def test_the_engine_keeps_to_grammars_beside_free_replies(tiny: Tokenizer) -> None:
    """The bundled model, which calls no tools by itself; with heat it draws what it would never say."""
    model = whippet.load(MODEL, base="fp32", device="cpu")
    batcher = Batcher(model.decoder)
    prompt = tuple(model.prompt_ids([Message("user", "What is 37 + 45?")], TOOLS))
    stop_ids = model.renderer.stop_ids
    hot = Sampling(max_new_tokens=200, temperature=3.0)
    asked = [Request(prompt, replace(hot, seed=seed), stop_ids) for seed in range(5)]
    forced = [replace(request, grammar=tool_call_grammar(model.renderer, TOOLS)) for request in asked[:3]]
    json_only = replace(asked[3], grammar=json_schema_grammar(model.tokenizer, SCHEMA, stop_ids))
    numbers = [batcher.add(request) for request in (*forced, json_only, asked[4])]
    replies: dict[int, list[int]] = {number: [] for number in numbers}
    ends: dict[int, str | None] = {}
    while batcher.busy:
        for event in batcher.step():
            assert event.error is None
            if event.drawn is not None:
                replies[event.number].append(event.drawn.id)
            if event.finish is not None:
                ends[event.number] = event.finish
    *calls, value, free = (tiny.decode(replies[number]) for number in numbers)
    assert [ends[number] for number in numbers[:4]] == ["stop"] * 4
    for text in calls:
        parsed = model.renderer.read(text, TOOLS)
        assert parsed.message.tool_calls and parsed.trouble is None
    check(json.loads(value))
    assert not model.renderer.parse(free, TOOLS).tool_calls


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"type": "objekt"}, "the schema: Invalid type: objekt"),
        ({"properties": {"a": {"items": {"type": "strnig"}}}}, "properties.a.items: Invalid type: strnig"),
        ({"properties": {"a": {"anyOf": [{}, {"not": {}}]}}}, 'properties.a.anyOf[1]: Unimplemented keys: ["not"]'),
        ({"items": {"$ref": "#/$defs/b"}, "$defs": {"b": {"if": {}}}}, '$defs.b: Unimplemented keys: ["if"]'),
        ({"items": {"anyOf": [{"$ref": "#/$defs/b"}, {"not": {}}]}, "$defs": {"b": {}}}, "items.anyOf[1]: Unimpl"),
        ({"items": {"x-guidance": {"lenient": True}, "not": {}}}, 'items: Unimplemented keys: ["not"]'),
        ({"items": {"type": "string", "pattern": "(?=a)b"}}, "items: error: look-around"),
        ({"$ref": "http://localhost/x"}, "does not fetch resources"),
        ({"$ref": "#/$defs/no"}, "Pointer '/$defs/no' does not exist"),
        ({"$ref": "#"}, "no reply can keep to this grammar"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum (5) is greater than maximum (1)"),
        ({"enum": list(range(100_000))}, "wanted at most 262144"),
        ({"default": float("nan")}, "is no JSON"),
        ({"x-guidance": {"lenient": True}, "not": {}}, 'Unimplemented keys: ["not"]'),
        (False, "schema is false"),
        ([], "wanted an object, met []"),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(schema: Any, complaint: str, tiny: Tokenizer) -> None:
    with pytest.raises(UsageError) as error:
        json_schema_grammar(tiny, schema)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_schemas_that_are_too_deep_are_refused(tiny: Tokenizer) -> None:
    schema: Any = {}
    for _ in range(5_000):
        schema = {"items": schema}
    for cut in (schema, json.loads('{"items":' * 300 + "{}" + "}" * 300)):
        with pytest.raises(UsageError):
            json_schema_grammar(tiny, cut)


def test_tools_that_are_refused(tiny: Tokenizer) -> None:
    renderer = make_renderer(tiny, None)

    def tool(parameters: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "f", "parameters": parameters}}

    for tools, name, complaint in (
        ([], None, "there are no tools to call"),
        (TOOLS, "get", "no tool is called 'get'"),
        ([tool({"type": "string"})], None, "the tool f: parameters: type is 'string', wanted 'object'"),
        ([tool({"properties": {"a": {"type": "str"}}})], None, "the tool f: parameters: properties.a: Invalid type"),
    ):
        with pytest.raises(UsageError, match=complaint):
            tool_call_grammar(renderer, tools, name)


def test_a_limit_that_is_passed_ends_the_reply(tiny: Tokenizer) -> None:
    """llguidance gives up on some schemas only while a reply is made; other replies must not suffer."""
    grammar = json_schema_grammar(tiny, {"type": "object", "properties": {f"key{i}": {} for i in range(3_000)}})
    for token_id in tiny.encode('{"key'):
        if grammar.trouble is None:
            grammar.accept(token_id)
    assert ids_of(grammar.allowed()) == sorted(tiny.stop_ids)
    assert not grammar.complete and "max is 2000" in str(grammar.trouble)
    grammar.accept(300)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_tokenizer(tmp_path))
    with pytest.raises(UsageError, match="knows no token that ends a reply"):
        json_schema_grammar(tokenizer, True)
    end = tokenizer.token_id("<|end|>")
    assert end is not None
    drawn(json_schema_grammar(tokenizer, {"type": "boolean"}, {end}), tokenizer, frozenset({end}), 0)


def test_an_end_that_is_also_text_comes_at_the_end_only(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_tokenizer(tmp_path))
    end = tokenizer.token_id("e")
    assert end is not None
    grammar = json_schema_grammar(tokenizer, {"type": "string"}, {end})
    for letter in '"free"'.replace("e", ""):
        assert end not in ids_of(grammar.allowed())
        grammar.accept(tokenizer.encode(letter)[0])
    assert ids_of(grammar.allowed()) == [end]


def test_a_missing_library_is_told_with_its_command(tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make in (
        lambda: json_schema_grammar(tiny, True),
        lambda: tool_call_grammar(make_renderer(tiny, None), TOOLS),
    ):
        with pytest.raises(MissingExtra, match=r"pip install 'whippet\[structured\]'"):
            make()
