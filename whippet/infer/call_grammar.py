"""A reply that must call one of some tools, in the form that the model was trained to write.

The form is told by the chat template, which writes the calls of a conversation: ``<tool_call>`` blocks (Hermes, Qwen),
``[TOOL_CALLS]`` and a list (Mistral), else an object with ``parameters`` (Llama 3), which ``chat/replies.py`` reads
whatever the model's own way is, Python's syntax of Llama 3.2 and 3.3 included. Tags that are tokens of the vocabulary
are written as these tokens. Several calls in one reply are possible in the first two forms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from whippet.chat.openings import CALLS_TAG
from whippet.chat.render import Renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import UsageError
from whippet.infer.grammar import NO_FORCING, LlGrammar, compiled, laid_out

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MISTRAL_ID = r'(", \"id\": \"" /[a-zA-Z0-9]{9}/ "\"")?'
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_call_grammar(
    renderer: Renderer, tools: Sequence[Mapping[str, Any]], name: str | None = None, *, several: bool = True
) -> LlGrammar:
    """A reply that is a call of one of ``tools`` (in OpenAI's form), of the one called ``name`` if that is given.
    ``several``: whether more calls may follow, where the form has room for them. Arguments keep to the tool's schema;
    UsageError names the place in one that is wrong or not supported."""
    chosen = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    if not chosen:
        raise UsageError(f"no tool is called {name!r:.60}" if tools else "there are no tools to call")
    tokenizer = renderer.tokenizer
    arguments = [_arguments(tokenizer, function) for function in chosen]
    form = call_form(renderer)
    key, identity = ("parameters" if form == "llama" else "arguments"), (MISTRAL_ID if form == "mistral" else "")
    rules = [NO_FORCING, f"start: {_start(form, tokenizer, several)}"]
    rules.append("call: " + " | ".join(f"c{place}" for place in range(len(chosen))))
    for place, (function, schema) in enumerate(zip(chosen, arguments, strict=True)):
        before = _literal(f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{key}": ')
        rules.append(f'c{place}: {before} a{place} {identity} "}}"')
        rules.append(f"a{place}: %json {json.dumps(schema)}")
    return LlGrammar(tokenizer, "\n".join(rules) + "\n", renderer.stop_ids)


def call_form(renderer: Renderer) -> str:
    """``hermes``, ``mistral`` or ``llama``: how the template writes calls."""
    template = renderer.with_tools or renderer.template
    source = "" if template is None else template.source
    return "hermes" if OPEN in source else "mistral" if CALLS_TAG in source else "llama"


def _start(form: str, tokenizer: Tokenizer, several: bool) -> str:
    if form == "hermes":
        one = f"{_tag(tokenizer, OPEN)} {_literal(chr(10))} call {_literal(chr(10))} {_tag(tokenizer, CLOSE)}"
        return f"{one} ({_literal(chr(10))} {one})*" if several else one
    if form == "mistral":
        return f'{_tag(tokenizer, CALLS_TAG)} " "? "[" call {"(" + _literal(", ") + " call)*" if several else ""} "]"'
    return "call"


def _tag(tokenizer: Tokenizer, text: str) -> str:
    token_id = tokenizer.added_tokens.get(text)
    return _literal(text) if token_id is None else f"<[{token_id}]>"


def _literal(text: str) -> str:
    """A text in llguidance's dialect of Lark, which escapes as JSON does."""
    return json.dumps(text)


def _arguments(tokenizer: Tokenizer, function: Mapping[str, Any]) -> Any:
    """The schema of a function's arguments, which are an object in any case."""
    where = f"the tool {function['name']:.60}: parameters"
    schema = function.get("parameters")
    if schema is None:
        schema = NO_ARGUMENTS
    if isinstance(schema, Mapping) and schema.get("type", "object") != "object":
        raise UsageError(f"{where}: type is {schema['type']!r:.40}, wanted 'object'")
    if isinstance(schema, Mapping):
        schema = {"type": "object", **schema}
    compiled(tokenizer, schema, where)
    return laid_out(schema, where)
