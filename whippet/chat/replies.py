"""What a model wrote, as a message: tool calls are taken out of the text, in the forms that the families write them.

Hermes and Qwen: ``<tool_call>`` blocks of JSON. Llama 3 (llama-models, models/llama3_3/prompt_format.md and those of
3.1 and 3.2): bare JSON objects, several after ``;``; ``[f(x=1), g()]``; ``<function=f>{...}</function>``; and after
``<|python_tag|>`` either of the first two, a call of a built-in tool (``brave_search.call(query="...")``) or a program
for its interpreter. Mistral: ``[TOOL_CALLS]`` and a JSON list, or ``name[ARGS]{...}`` as its tokenizers write from v11
on (mistral-common, tokens/tokenizers/instruct.py).

A reply in which one call is malformed is text as a whole, and a reason is told beside it. Nothing is evaluated, nothing
is raised, and the time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from whippet.chat.call_json import Malformed, as_call, decode, read_objects, read_value, skip
from whippet.chat.call_python import read_built_in, read_listed
from whippet.chat.messages import Message, ToolCall
from whippet.chat.openings import (
    ANYWHERE,
    BARE,
    BARE_KINDS,
    CALLS_TAG,
    PYTHON_TAG,
    first_opening,
    thought_end,
)

BLOCK = re.compile(r"<tool_call>\s*(?=\{)")
CLOSE = re.compile(r"\s*</tool_call>")
FUNCTION = re.compile(r"<function=([\w.-]+)>\s*(?=\{)")
FUNCTION_CLOSE = re.compile(r"\s*</function>")
ARGS = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]([\w-]+))?(?:\[ARGS\])?\s*(?=\{)")
MEANT = re.compile(r'"(?:arguments|parameters)"\s*:')
TAGS = ("<tool_call>", "<function=")
INTERPRETER = "code_interpreter"
"""The tool that runs a program, its argument ``code``."""
Found = tuple[str, list[ToolCall]]
"""What a reply says beside its calls, and these."""


@dataclass(frozen=True)
class Parsed:
    """A reply. ``trouble``: why what looks like a tool call in it was left as text, None if nothing does."""

    message: Message
    trouble: str | None = None


def parse_reply(text: str, names: Collection[str] | None = None) -> Message:
    """The assistant's message that ``text`` stands for."""
    return read_reply(text, names).message


def read_reply(text: str, names: Collection[str] | None = None) -> Parsed:
    """The assistant's message that ``text`` stands for, and what was wrong with its calls.

    names: of the tools that may be called; what calls another is text. None: any name is taken, and a bare call is
    known only at the reply's beginning. What is said beside calls is kept, the spaces next to them are not.
    """
    begin = thought_end(text)
    opening = first_opening(text, begin, lines=names is not None)
    if opening is None:
        tag = next((tag for tag in TAGS if text.find(tag, begin) >= 0), None)
        return Parsed(Message("assistant", text), None if tag is None else f"no call follows {tag}")
    parsed = _read_from(text, opening, names)
    if not parsed.message.tool_calls and opening.lastgroup in BARE_KINDS:
        # Data may come before calls in tags, and look like a call.
        tagged = ANYWHERE[True, False].search(text, opening.start())
        if tagged is not None:
            return _read_from(text, tagged, names)
    return parsed


def _read_from(text: str, opening: re.Match[str], names: Collection[str] | None) -> Parsed:
    """The reply whose calls begin at ``opening``."""
    plain = Message("assistant", text)
    kind = str(opening.lastgroup)
    start = opening.start(kind)
    try:
        rest, calls = READERS[kind](text, start)
    except Malformed as error:
        return Parsed(plain, f"the tool call cannot be read: {error}" if _meant(text, kind, start, names) else None)
    unknown = next((call.name for call in calls if names is not None and call.name not in names), None)
    if unknown is not None:
        return Parsed(plain, f"no tool is called {unknown!r:.60}")
    content = (text[:start].rstrip() + rest).rstrip()
    return Parsed(Message("assistant", content, tuple(calls)))


def tool_names(tools: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of tools that are given in OpenAI's form."""
    return frozenset(str(tool["function"]["name"]) for tool in tools)


def _meant(text: str, kind: str, start: int, names: Collection[str] | None) -> bool:
    """Whether what cannot be read was meant to be a call. Tags mean nothing else; an object or a list may."""
    if kind not in BARE_KINDS:
        return True
    if names is not None:
        quotes = ('"', '"') if kind == "json" else ("", "(")
        return any(name.join(quotes) in text for name in names)
    return kind == "listed" or MEANT.search(text, start) is not None


def _hermes(text: str, start: int) -> Found:
    return _tagged(text, start, BLOCK, CLOSE, lambda match: _one(read_value(text, match.end())))


def _function(text: str, start: int) -> Found:
    return _tagged(text, start, FUNCTION, FUNCTION_CLOSE, lambda match: _with_name(text, match))


def _tagged(
    text: str,
    start: int,
    opening: re.Pattern[str],
    closing: re.Pattern[str],
    read: Callable[[re.Match[str]], tuple[ToolCall, int]],
) -> Found:
    """Calls between tags, and the texts between and after them."""
    rest: list[str] = []
    calls: list[ToolCall] = []
    place = start
    while (match := opening.search(text, place)) is not None:
        rest.append(text[place : match.start()])
        call, end = read(match)
        close = closing.match(text, end)
        if close is None:
            raise Malformed(f"{call.name:.60}: wanted {closing.pattern[3:]} after its arguments")
        calls.append(call)
        place = close.end()
    return "".join((*rest, text[place:])), calls


def _with_name(text: str, match: re.Match[str]) -> tuple[ToolCall, int]:
    """The call of the function that ``match`` names; its arguments follow."""
    arguments, end = decode(text, match.end())
    identity = match[2] if match.re is ARGS else None
    return as_call({"name": match[1], "arguments": arguments, "id": identity}), end


def _one(found: tuple[list[ToolCall], int]) -> tuple[ToolCall, int]:
    calls, end = found
    return calls[0], end


def _mistral(text: str, start: int) -> Found:
    rest: list[str] = []
    calls: list[ToolCall] = []
    place, after = start, start
    while place >= 0:
        rest.append(text[after:place])
        place += len(CALLS_TAG)
        match = ARGS.match(text, place)
        if match is not None:
            call, after = _with_name(text, match)
            calls.append(call)
        else:
            found, after = read_value(text, skip(text, place))
            calls += found
        place = text.find(CALLS_TAG, after)
    return "".join((*rest, text[after:])), calls


def _python(text: str, start: int) -> Found:
    """What follows the tag: calls in one of the other forms, else a program."""
    program = text[start + len(PYTHON_TAG) :].strip()
    if not program:
        raise Malformed(f"nothing follows {PYTHON_TAG}")
    bare = BARE[True].match(program)
    if bare is not None and bare.lastgroup == "json":
        return _json(program, 0)
    built_in = read_built_in(program)
    if built_in is not None:
        return "", [built_in]
    if bare is not None:
        try:
            return _listed(program, 0)
        except Malformed:
            pass  # a list of what Python's functions return is a program too
    return "", [ToolCall(INTERPRETER, {"code": program})]


def _json(text: str, start: int) -> Found:
    return "", read_objects(text, start)


def _listed(text: str, start: int) -> Found:
    calls, end = read_listed(text, start)
    if text[end:].strip():
        raise Malformed("the list of calls is followed by text")
    return "", calls


READERS: dict[str, Callable[[str, int], Found]] = {
    "hermes": _hermes,
    "function": _function,
    "mistral": _mistral,
    "python": _python,
    "json": _json,
    "listed": _listed,
}
"""What reads the calls of each kind of opening (``openings.py``), from where it begins."""
