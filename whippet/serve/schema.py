"""What may be asked, field by field: a request's JSON, checked and made a frozen dataclass.

The tables are the reference of the two routes: they check, and ``openapi.py`` prints them. Sources: OpenAI's API
reference, "Create chat completion" and "Create completion"; ``top_k``, ``min_p`` and ``repetition_penalty`` as vLLM
and llama.cpp name them. A field that is not in a table is refused, but for ``IGNORED`` ones, which change no reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whippet.infer.requests import MOST_TOP
from whippet.serve import messages
from whippet.serve.errors import bad
from whippet.serve.fields import (
    Field,
    Json,
    Kind,
    boolean,
    choice,
    either,
    integer,
    listed,
    mapping,
    number,
    read_record,
    record,
    text,
)

MAX_CHOICES = 64
"""Replies to one HTTP request: n times the number of prompts."""
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_CHARACTERS = 4 * 2**20
"""Of any one text; the body's limit is of that size too."""
MAX_TOKENS = 2**20
ANSWER_ONLY = "whippet answers in text only"

NAME = text(256, 1)
SOME_TEXT = text(MAX_CHARACTERS)
STOP = text(256, 1)

IGNORED: dict[str, Field] = {
    "user": Field(SOME_TEXT, "ignored"),
    "metadata": Field(mapping(64), "ignored"),
    "store": Field(boolean(), "ignored: nothing is stored"),
    "service_tier": Field(text(64), "ignored"),
    "safety_identifier": Field(SOME_TEXT, "ignored"),
    "prompt_cache_key": Field(SOME_TEXT, "ignored: beginnings that prompts share are always computed once"),
    "prompt_cache_retention": Field(text(64), "ignored"),
}
"""Fields that change no reply."""
STREAM_OPTIONS = {
    "include_usage": Field(boolean(), "end the stream with a chunk of counts", default=False),
    "include_obfuscation": Field(choice(False), "only false: chunks are not padded"),
}
COMMON: dict[str, Field] = {
    "model": Field(NAME, "an id of /v1/models", required=True),
    "temperature": Field(number(0, 2), "0 takes the likeliest token; by default what the checkpoint says, or 0.7"),
    "top_p": Field(number(0, 1, above=True), "draw from the likeliest tokens that reach this probability together"),
    "top_k": Field(integer(0, 2**31 - 1), "draw from so many likeliest tokens; 0 from all"),
    "min_p": Field(number(0, 1), "draw from tokens so many times as likely as the likeliest"),
    "presence_penalty": Field(number(-2, 2), "taken from the score of tokens that the reply holds"),
    "frequency_penalty": Field(number(-2, 2), "the same for each time that it holds them"),
    "repetition_penalty": Field(number(0, 10, above=True), "divides the score of tokens that came before"),
    "logit_bias": Field(mapping(MAX_BIASES, number(-100, 100)), "added to the scores of token ids"),
    "seed": Field(integer(-(2**63), 2**63 - 1), "the same seed draws the same reply; of n replies each has its own"),
    "n": Field(integer(1, MAX_CHOICES), "replies to each prompt", default=1),
    "stop": Field(
        either((str, STOP), (list, listed(STOP, MAX_STOPS))), "texts that end the reply and are not part of it"
    ),
    "stream": Field(boolean(), "send the reply as it is made, as server-sent events", default=False),
    "stream_options": Field(record(STREAM_OPTIONS)),
    **IGNORED,
}
FUNCTION = {
    "name": Field(text(128, 1), required=True),
    "description": Field(SOME_TEXT),
    "parameters": Field(mapping(1024), "a JSON schema of an object"),
    "strict": Field(boolean(), "whether a call that is forced keeps to the schema; it always does"),
}
TOOL = {"type": Field(choice("function"), required=True), "function": Field(record(FUNCTION), required=True)}
NAMED_TOOL = {
    "type": Field(choice("function"), required=True),
    "function": Field(record({"name": FUNCTION["name"]}), required=True),
}
JSON_SCHEMA = {
    "name": Field(text(128, 1), required=True),
    "description": Field(SOME_TEXT),
    "schema": Field(mapping(1024), "a JSON schema", required=True),
    "strict": Field(boolean(), "the reply always keeps to the schema"),
}
MESSAGE = Kind(mapping(64).read, messages.SCHEMA)
"""What is in one is looked at by ``messages.py``."""
RESPONSE_FORMAT = {
    "type": Field(choice("text", "json_object", "json_schema"), required=True),
    "json_schema": Field(record(JSON_SCHEMA), "for the type json_schema"),
}
CHAT: dict[str, Field] = {
    "messages": Field(listed(MESSAGE, MAX_MESSAGES, 1), "the conversation", required=True),
    "max_completion_tokens": Field(integer(1, MAX_TOKENS), "most tokens of a reply"),
    "max_tokens": Field(integer(1, MAX_TOKENS), "the older name of max_completion_tokens"),
    "tools": Field(listed(record(TOOL), MAX_TOOLS), "functions that the model may call", default=()),
    "tool_choice": Field(
        either((str, choice("none", "auto", "required")), (dict, record(NAMED_TOOL))), "whether a tool must be called"
    ),
    "parallel_tool_calls": Field(boolean(), "whether a reply may hold several calls", default=True),
    "response_format": Field(record(RESPONSE_FORMAT), "text, any JSON object, or JSON that keeps to a schema"),
    "logprobs": Field(boolean(), "tell how likely each token was", default=False),
    "top_logprobs": Field(integer(0, MOST_TOP), "and so many likelier tokens in its place; needs logprobs"),
    "modalities": Field(listed(choice("text"), 1, 1), "only text"),
    "chat_template_kwargs": Field(mapping(64), "what the chat template is told besides", default={}),
    **COMMON,
}
CHAT_REFUSED = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": ANSWER_ONLY,
    "prediction": "replies are not predicted",
    "reasoning_effort": "how much a model reasons is up to its template",
    "verbosity": "ask for it in a message",
    "web_search_options": "nothing is fetched from the web",
}
TOKEN_ID = integer(0, 2**31 - 1)
PROMPT = Kind(lambda value, at: _prompts(value, at), {
    "anyOf": [
        SOME_TEXT.schema,
        listed(SOME_TEXT, MAX_CHOICES, 1).schema,
        listed(TOKEN_ID, MAX_TOKENS, 1).schema,
        listed(listed(TOKEN_ID, MAX_TOKENS, 1), MAX_CHOICES, 1).schema,
    ]
})  # fmt: skip
COMPLETION: dict[str, Field] = {
    "prompt": Field(PROMPT, "a text or token ids to continue, or a list of them", required=True),
    "max_tokens": Field(integer(1, MAX_TOKENS), "most tokens of a reply", default=16),
    "echo": Field(boolean(), "put the prompt before the reply", default=False),
    "logprobs": Field(integer(0, MOST_TOP), "tell how likely each token was, and so many likelier ones in its place"),
    "best_of": Field(integer(1, MAX_CHOICES), "only the same as n"),
    **COMMON,
}
COMPLETION_REFUSED = {"suffix": "the model continues texts and fills no gaps"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both routes share. None is what was not said."""

    model: str
    sampling: Mapping[str, Any]
    """Fields of ``Sampling`` that were given, ``seed`` and ``max_new_tokens`` among them."""
    n: int
    stream: bool
    include_usage: bool


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Asked):
    """A checked request of ``/v1/chat/completions``."""

    messages: tuple[Json, ...]
    tools: tuple[Json, ...]
    template_variables: Json
    tool_choice: str
    """``none``, ``auto``, ``required`` or ``named``."""
    tool_name: str | None
    parallel_tool_calls: bool
    response_format: str
    json_schema: Json | None
    top: int | None
    """How many alternatives of each token are told; None: no log-probabilities either."""


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(Asked):
    """A checked request of ``/v1/completions``."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    top: int | None


def read_chat(value: Any) -> ChatRequest:
    """The request that a body's JSON stands for; ApiError names the field that is wrong."""
    given = read_record(value, "", CHAT, CHAT_REFUSED)
    tools = tuple(map(_tool, value.get("tools") or ()))
    choice_, name = _tool_choice(given["tool_choice"], [tool["function"]["name"] for tool in tools])
    form = given["response_format"] or {"type": "text", "json_schema": None}
    if (form["json_schema"] is not None) != (form["type"] == "json_schema"):
        raise bad("belongs to the type json_schema, and that needs it", "response_format.json_schema")
    if form["type"] != "text" and tools and choice_ != "none":
        raise bad("cannot be joined with tools that may be called: set tool_choice to 'none'", "response_format")
    if given["top_logprobs"] is not None and not given["logprobs"]:
        raise bad("needs logprobs to be true", "top_logprobs")
    older, newer = given["max_tokens"], given["max_completion_tokens"]
    if older is not None and newer is not None and older != newer:
        raise bad("says another thing than max_completion_tokens", "max_tokens")
    return ChatRequest(
        messages=given["messages"],
        tools=tools,
        template_variables=given["chat_template_kwargs"],
        tool_choice=choice_,
        tool_name=name,
        parallel_tool_calls=given["parallel_tool_calls"],
        response_format=form["type"],
        json_schema=form["json_schema"]["schema"] if form["json_schema"] else None,
        top=(given["top_logprobs"] or 0) if given["logprobs"] else None,
        **_common(given, newer if newer is not None else older),
    )


def read_completion(value: Any) -> CompletionRequest:
    """The same for ``/v1/completions``."""
    given = read_record(value, "", COMPLETION, COMPLETION_REFUSED)
    prompts = given["prompt"]
    if given["best_of"] is not None and given["best_of"] != given["n"]:
        raise bad("is supported only where it equals n", "best_of")
    if len(prompts) * given["n"] > MAX_CHOICES:
        raise bad(f"{len(prompts)} prompts times {given['n']} are more than {MAX_CHOICES} replies", "n")
    if given["echo"] and given["logprobs"] is not None:
        raise bad("cannot be joined with logprobs: those of a prompt are not computed", "echo")
    return CompletionRequest(
        prompts=prompts, echo=given["echo"], top=given["logprobs"], **_common(given, given["max_tokens"])
    )


def _common(given: Json, most: int | None) -> dict[str, Any]:
    options = given["stream_options"]
    if options is not None and not given["stream"]:
        raise bad("needs stream to be true", "stream_options")
    stop = given["stop"]
    names = ("temperature", "top_p", "top_k", "min_p")
    penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
    sampling = {name: given[name] for name in (*names, *penalties)} | {
        "max_new_tokens": most,
        "stop": (stop,) if isinstance(stop, str) else stop,
        # Samplings know seeds from 0 on.
        "seed": None if given["seed"] is None else given["seed"] % 2**63,
        "logit_bias": _biases(given["logit_bias"]),
    }
    return {
        "model": given["model"],
        "sampling": _without_none(sampling),
        "n": given["n"],
        "stream": given["stream"],
        "include_usage": bool(options and options["include_usage"]),
    }


def _tool_choice(value: Any, names: list[str]) -> tuple[str, str | None]:
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise bad(f"two functions are called {doubled!r:.60}", "tools")
    if value is None:
        return ("auto" if names else "none"), None
    if isinstance(value, dict):
        name = value["function"]["name"]
        if name not in names:
            raise bad(f"no tool is called {name!r:.60}", "tool_choice.function.name")
        return "named", name
    if value != "none" and not names:
        raise bad(f"is {value!r}, but there are no tools", "tool_choice")
    return value, None


def _biases(value: Mapping[str, float] | None) -> dict[int, float] | None:
    if not value:
        return None
    wrong = next((key for key in value if not (key.isascii() and key.isdigit() and len(key) < 10)), None)
    if wrong is not None:
        raise bad(f"the key {wrong[:40]!r} is no token id", "logit_bias")
    return {int(key): bias for key, bias in value.items()}


def _prompts(value: Any, at: str) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, list) and value and isinstance(value[0], int) and not isinstance(value[0], bool):
        return (listed(TOKEN_ID, MAX_TOKENS, 1).read(value, at),)
    if isinstance(value, list):
        item = either((str, SOME_TEXT), (list, listed(TOKEN_ID, MAX_TOKENS, 1)))
        made: tuple[str | tuple[int, ...], ...] = listed(item, MAX_CHOICES, 1).read(value, at)
        return made
    return (SOME_TEXT.read(value, at),)


def _tool(given: Json) -> Json:
    """A checked tool as templates are shown it: with the keys in the client's order, null ones left out, and without
    ``strict``, which is meant for us."""
    function = {key: one for key, one in given["function"].items() if one is not None and key != "strict"}
    return {"type": "function", "function": function}


def _without_none(value: Json) -> Json:
    return {key: one for key, one in value.items() if one is not None}
