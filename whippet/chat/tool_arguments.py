"""The arguments of a call, from JSON to what the Python function takes.

A model writes ``"10"`` for 10 and ``2`` for 2.0; what can mean only one value is taken for it, everything else is told
back as an ``ArgumentError`` that the model can read and act on.
"""

from __future__ import annotations

import enum
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

WORDS = {"true": True, "false": False}
WANTED: dict[Any, str] = {
    str: "a text", int: "an integer", float: "a number", bool: "true or false", type(None): "null", list: "a list",
    tuple: "a list", dict: "an object",
}  # fmt: skip


class ArgumentError(ValueError):
    """Arguments that a function cannot be called with; the message names the argument."""


def bind(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``function`` is called with, in place and by name, for a call's parsed JSON; its types are those that
    ``tools.schema`` has a schema for. ArgumentError names what is missing, unknown or of another type."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    unknown = next((name for name in arguments if name not in parameters), None)
    if unknown is not None:
        raise ArgumentError(f"there is no argument {unknown!r:.60}; there are: {', '.join(parameters) or 'none'}")
    placed: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in arguments:
            value = _convert(arguments[name], hints.get(name, Any), name)
        elif parameter.default is not parameter.empty:
            value = parameter.default
        else:
            raise ArgumentError(f"the argument {name} is missing")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            placed.append(value)
        else:
            named[name] = value
    return tuple(placed), named


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        return _one_of(value, dict.fromkeys(inner), where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(_one_of(value, {member.value: None for member in hint}, where))
    if origin in (Union, types.UnionType):
        return _any_of(value, inner, where)
    if hint in (list, tuple) or origin in (list, tuple):
        return _items(value, origin or hint, inner, where)
    if hint is dict or origin is dict:
        if not isinstance(value, dict):
            _refuse(value, [dict], where)
        return {key: _convert(one, inner[1], f"{where}.{key}") if inner else one for key, one in value.items()}
    return _scalar(value, hint, where)


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if type(value) is hint or (hint is type(None) and value is None):
        return value
    if hint is bool and isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    if hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            if hint is int and isinstance(value, str):
                return int(value)
            number = float(value)
            if hint is float and math.isfinite(number):
                return number
            if hint is int and number.is_integer():
                return int(number)
        except (ValueError, OverflowError):
            pass
    _refuse(value, [hint], where)


def _items(value: Any, kind: Any, inner: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, list):
        _refuse(value, [list], where)
    if kind is tuple and inner and len(inner) != len(value):
        raise ArgumentError(f"{where}: wanted a list of {len(inner)}, met one of {len(value)}")
    hints = inner if kind is tuple and inner else (inner or (Any,)) * len(value)
    return kind(_convert(one, hint, f"{where}[{i}]") for i, (one, hint) in enumerate(zip(value, hints, strict=True)))


def _any_of(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    """The value for the first of ``hints`` that it is of, or else can be read as."""
    if value is None and type(None) in hints:
        return None
    options = [hint for hint in hints if hint is not type(None)]
    if len(options) == 1:
        return _convert(value, options[0], where)
    exact = [hint for hint in options if (get_origin(hint) or hint) is type(value)]
    for hint in (*exact, *options):
        try:
            return _convert(value, hint, where)
        except ArgumentError:
            continue
    _refuse(value, options, where)


def _one_of(value: Any, choices: Mapping[Any, None], where: str) -> Any:
    found = next((one for one in choices if type(one) is type(value) and one == value), None)
    if found is None and (value is not None or None not in choices):
        raise ArgumentError(f"{where}: wanted one of {', '.join(map(repr, choices))}, met {value!r:.60}")
    return found


def _refuse(value: Any, hints: Sequence[Any], where: str) -> NoReturn:
    wanted = " or ".join(WANTED.get(get_origin(hint) or hint, str(hint)) for hint in hints)
    raise ArgumentError(f"{where}: wanted {wanted}, met {value!r:.60}")
