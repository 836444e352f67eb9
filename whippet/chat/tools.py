"""Python functions as the tools of a conversation.

``schema(function)`` makes what goes into ``Conversation.tools`` out of annotations and a Google-style docstring. The
calls that a model answers with are read by ``replies.py``.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from whippet.errors import UsageError

SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
ARGUMENT = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of ``function`` in OpenAI's form, with what it returns beside its parameters as transformers has
    it, if JSON has such a type. UsageError names an argument without type or description."""
    name = getattr(function, "__name__", type(function).__name__)
    summary, described, returned = _docstring(inspect.getdoc(function) or "")
    if not summary:
        raise UsageError(f"the tool {name} has no docstring to tell the model what it does")
    try:
        hints = typing.get_type_hints(function)
    except (AttributeError, NameError, SyntaxError, TypeError) as error:
        raise UsageError(f"the tool {name}: its types cannot be read: {error}") from error
    properties: dict[str, Any] = {}
    required: list[str] = []
    for argument in inspect.signature(function).parameters.values():
        where = f"the tool {name}: argument {argument.name}"
        if argument.name not in hints:
            raise UsageError(f"{where} has no type")
        if argument.name not in described:
            raise UsageError(f"{where} has no description in the docstring's section 'Args:'")
        properties[argument.name] = _type(hints[argument.name], where) | {"description": described[argument.name]}
        if argument.default is argument.empty:
            required.append(argument.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    told = {"name": name, "description": summary, "parameters": parameters} | _return(hints, returned)
    return {"type": "function", "function": told}


def _return(hints: dict[str, Any], described: str) -> dict[str, Any]:
    """No model writes what a function returns, so a type that JSON lacks is left out rather than refused."""
    if "return" not in hints:
        return {}
    try:
        made = _type(hints["return"], "what it returns")
    except UsageError:
        return {}
    return {"return": made | ({"description": described} if described else {})}


def _type(hint: Any, where: str) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in SCALARS:
        return {"type": SCALARS[hint]}
    if hint is Any:
        return {}
    if origin is Literal:
        return _values(list(inner), where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _values([member.value for member in hint], where)
    if origin in (Union, types.UnionType):
        return _union(inner, where)
    if hint in (list, tuple) or origin is list:
        return {"type": "array"} | ({"items": _type(inner[0], where)} if inner else {})
    if origin is tuple:
        return {"type": "array", "prefixItems": [_type(one, where) for one in inner]}
    if hint is dict or origin is dict:
        return {"type": "object"} | ({"additionalProperties": _type(inner[1], where)} if inner else {})
    raise UsageError(f"{where} has the type {hint!r}, which has no JSON schema")


def _union(options: tuple[Any, ...], where: str) -> dict[str, Any]:
    made = [_type(option, where) for option in options if option is not type(None)]
    simple = all(set(one) == {"type"} for one in made)
    if len(made) == 1:
        result = made[0]
    elif simple:
        names = sorted({one["type"] for one in made})
        result = {"type": names if len(names) > 1 else names[0]}
    else:
        result = {"anyOf": made}
    return result | ({"nullable": True} if type(None) in options else {})


def _values(values: list[Any], where: str) -> dict[str, Any]:
    kinds = list(dict.fromkeys(SCALARS.get(type(value), "") for value in values))
    if "" in kinds or not values:
        raise UsageError(f"{where} offers {values!r:.60}, wanted texts, numbers, booleans or None")
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _docstring(text: str) -> tuple[str, dict[str, str], str]:
    """Summary, description by argument, and that of what is returned. The description of an argument goes on over
    lines that are indented deeper."""
    parts = SECTION.split(text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    body = next((sections[name] for name in ("Args", "Arguments", "Parameters") if name in sections), "")
    lines = inspect.cleandoc("\n" + body).splitlines()
    described: dict[str, str] = {}
    name = ""
    for line in lines:
        match = None if line.startswith((" ", "\t")) else ARGUMENT.match(line)
        if match is not None:
            name = match[1]
            described[name] = match[2].strip()
        elif name and line.strip():
            described[name] = f"{described[name]} {line.strip()}".strip()
    return parts[0].strip(), described, sections.get("Returns", "").strip()
