"""What a model wrote, as a message: tool calls are taken out of the text, in the forms that the families write them.

Hermes and Qwen: ``<tool_call>`` blocks of JSON. Llama 3 (llama-models, models/llama3_3/prompt_format.md): a bare JSON
object; ``[f(x=1), g()]``; ``<function=f>{...}</function>``; and after ``<|python_tag|>`` a JSON object, a call of a
built-in tool (``brave_search.call(query="...")``) or a program for its interpreter. Mistral: ``[TOOL_CALLS]`` and a
JSON list. What is malformed stays text; nothing is evaluated.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from whippet.chat.messages import Message, ToolCall

OPEN = re.compile(r"<tool_call>\s*(?=\{)")
CLOSE = re.compile(r"\s*</tool_call>")
FUNCTION = re.compile(r"<function=([\w.-]+)>(.*)</function>", re.DOTALL)
DECODER = json.JSONDecoder()
PYTHON_TAG, CALLS_TAG = "<|python_tag|>", "[TOOL_CALLS]"
INTERPRETER = "code_interpreter"
"""The tool that runs a program, its argument ``code``."""
MAX_PYTHON = 1 << 16
"""Longest text that is looked at as Python's syntax."""


def parse_reply(text: str) -> Message:
    """The assistant's message that ``text`` stands for."""
    stripped = text.strip()
    content, calls = _blocks(stripped)
    if not calls:
        content, calls = "", _whole(stripped)
    return Message("assistant", content, tuple(calls)) if calls else Message("assistant", text)


def _whole(text: str) -> list[ToolCall]:
    """The calls that a text stands for which is nothing else."""
    if text.startswith(PYTHON_TAG):
        program = text.removeprefix(PYTHON_TAG).strip()
        found = _json(program) or _built_in(program)
        return found or ([ToolCall(INTERPRETER, {"code": program})] if program else [])
    if text.startswith(CALLS_TAG):
        return _json(text.removeprefix(CALLS_TAG))
    tagged = FUNCTION.fullmatch(text)
    if tagged is not None:
        value = _loads(tagged[2])
        return [ToolCall(tagged[1], value)] if isinstance(value, dict) else []
    return _json(text) if text.startswith("{") else _listed(text)


def _blocks(text: str) -> tuple[str, list[ToolCall]]:
    """What stands outside ``<tool_call>`` blocks, and the calls inside; no calls if one block is malformed."""
    outside, *blocks = OPEN.split(text)
    calls: list[ToolCall] = []
    for block in blocks:
        try:
            value, end = DECODER.raw_decode(block)
        except (ValueError, RecursionError):
            return text, []
        call, close = _as_call(value), CLOSE.match(block, end)
        if call is None or close is None:
            return text, []
        calls.append(call)
        outside += block[close.end() :]
    return outside.strip(), calls


def _json(text: str) -> list[ToolCall]:
    """The calls that a JSON object, or a list of them, describes; none if one of them describes no call."""
    value = _loads(text)
    calls = [_as_call(one) for one in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_call(value: Any) -> ToolCall | None:
    """The call that a JSON object describes, with ``arguments`` (Hermes, Qwen, Mistral) or ``parameters`` (Llama)."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    call_id = value.get("id")
    named = call_id if isinstance(call_id, str) and call_id else None
    return ToolCall(value["name"], arguments, named) if isinstance(arguments, dict) else None


def _listed(text: str) -> list[ToolCall]:
    """The calls in ``[f(x=1), g()]``."""
    tree = _syntax(text) if text.startswith("[") and text.endswith(")]") else None
    if not isinstance(tree, ast.List):
        return []
    calls = [_from_syntax(node) for node in tree.elts]
    return [call for call in calls if call is not None] if None not in calls else []


def _built_in(text: str) -> list[ToolCall]:
    """The call in ``tool.call(x=1)``."""
    call = _from_syntax(_syntax(text)) if text.endswith(")") else None
    if call is None or not call.name.endswith(".call"):
        return []
    return [ToolCall(call.name.removesuffix(".call"), call.arguments)]


def _syntax(text: str) -> ast.expr | None:
    """``text`` as the tree of a Python expression, None if it is none."""
    try:
        return ast.parse(text, mode="eval").body if len(text) <= MAX_PYTHON else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _from_syntax(node: ast.expr | None) -> ToolCall | None:
    """The call ``name(key=literal, ...)``; the name may hold dots."""
    if not isinstance(node, ast.Call) or node.args or any(one.arg is None for one in node.keywords):
        return None
    name = ast.unparse(node.func)
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        arguments = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
        json.dumps(arguments, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return ToolCall(name, arguments)
