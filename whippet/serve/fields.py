"""Kinds of values in a request's JSON: each checks a value, and describes itself as a JSON schema.

``schema.py`` makes its tables of these, so that what is checked and what ``/openapi.json`` says are one thing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whippet.serve.errors import ApiError, bad

Json = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """``read`` takes a value and the name of its place, and returns what it stands for or raises ApiError."""

    read: Callable[[Any, str], Any]
    schema: Json


@dataclass(frozen=True)
class Field:
    """One key of an object. null stands for an absent one, unless it is ``required``."""

    kind: Kind
    about: str = ""
    default: Any = None
    required: bool = False


def integer(low: int, high: int) -> Kind:
    """A whole number from ``low`` to ``high``."""

    def read(value: Any, at: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad(f"wanted a whole number, met {shown(value)}", at)
        if not low <= value <= high:
            raise bad(f"{shown(value)} is out of range, wanted {low} to {high}", at)
        return value

    return Kind(read, {"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float, *, above: bool = False) -> Kind:
    """A number from ``low`` (or, if ``above``, greater than it) to ``high``."""

    def read(value: Any, at: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad(f"wanted a number, met {shown(value)}", at)
        if not low <= value <= high or (above and value == low):  # NaN neither
            raise bad(f"{shown(value)} is out of range, wanted {'above ' if above else ''}{low} to {high}", at)
        return float(value)

    return Kind(read, {"type": "number", "exclusiveMinimum" if above else "minimum": low, "maximum": high})


def boolean() -> Kind:
    """true or false."""

    def read(value: Any, at: str) -> bool:
        if not isinstance(value, bool):
            raise bad(f"wanted true or false, met {shown(value)}", at)
        return value

    return Kind(read, {"type": "boolean"})


def text(most: int, least: int = 0) -> Kind:
    """A text of ``least`` to ``most`` characters."""

    def read(value: Any, at: str) -> str:
        if not isinstance(value, str):
            raise bad(f"wanted a text, met {shown(value)}", at)
        if not least <= len(value) <= most:
            raise bad(f"has {len(value)} characters, wanted {least} to {most}", at)
        return value

    return Kind(read, {"type": "string", "minLength": least, "maxLength": most})


def choice(*values: Any) -> Kind:
    """One of a few values."""

    def read(value: Any, at: str) -> Any:
        if not any(value == one and type(value) is type(one) for one in values):
            raise bad(f"is {shown(value)}, wanted {' or '.join(map(shown, values))}", at)
        return value

    return Kind(read, {"enum": list(values)})


def listed(item: Kind, most: int, least: int = 0) -> Kind:
    """A list of ``least`` to ``most`` items."""

    def read(value: Any, at: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise bad(f"wanted a list, met {shown(value)}", at)
        if not least <= len(value) <= most:
            raise bad(f"has {len(value)} items, wanted {least} to {most}", at)
        return tuple(item.read(one, f"{at}[{place}]") for place, one in enumerate(value))

    return Kind(read, {"type": "array", "items": item.schema, "minItems": least, "maxItems": most})


def mapping(most: int, item: Kind | None = None) -> Kind:
    """An object of at most ``most`` keys that are not known beforehand."""

    def read(value: Any, at: str) -> Json:
        if not isinstance(value, dict):
            raise bad(f"wanted an object, met {shown(value)}", at)
        if len(value) > most:
            raise bad(f"has {len(value)} keys, wanted at most {most}", at)
        return value if item is None else {key: item.read(one, f"{at}.{key:.40}") for key, one in value.items()}

    return Kind(
        read, {"type": "object", "maxProperties": most} | ({"additionalProperties": item.schema} if item else {})
    )


def record(fields: Mapping[str, Field], refused: Mapping[str, str] | None = None) -> Kind:
    """An object with these keys and no others; read as a dictionary that holds each of them."""
    return Kind(lambda value, at: read_record(value, at, fields, refused or {}), record_schema(fields))


def either(*kinds: tuple[type | tuple[type, ...], Kind]) -> Kind:
    """One of several kinds, which the type of the value tells apart."""

    def read(value: Any, at: str) -> Any:
        for types, kind in kinds:
            if isinstance(value, types) and not isinstance(value, bool):
                return kind.read(value, at)
        return kinds[-1][1].read(value, at)

    return Kind(read, {"anyOf": [kind.schema for _, kind in kinds]})


def read_record(value: Any, at: str, fields: Mapping[str, Field], refused: Mapping[str, str]) -> Json:
    """The object ``value`` with every key of ``fields``, absent ones by their default. A key that is not known is an
    error: what is not understood must not be ignored. ``refused`` says why some are not, and lets them be null."""
    if not isinstance(value, dict):
        raise bad(f"wanted an object, met {shown(value)}", at or None)
    for key in value:
        if key in refused and value[key] is not None:
            raise bad(f"is not supported: {refused[key]}", _join(at, key), "unsupported_parameter")
        if key not in fields and key not in refused:
            raise _unknown(key, at, fields)
    made: Json = {}
    for key, field in fields.items():
        found = value.get(key)
        if found is None:
            if field.required:
                raise bad("is missing", _join(at, key), "missing_required_parameter")
            made[key] = field.default
        else:
            made[key] = field.kind.read(found, _join(at, key))
    return made


def record_schema(fields: Mapping[str, Field]) -> Json:
    """The JSON schema of ``record``."""
    described = {key: _described(field) for key, field in fields.items()}
    required = [key for key, field in fields.items() if field.required]
    schema: Json = {"type": "object", "properties": described, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _described(field: Field) -> Json:
    told = field.kind.schema if field.required else {"anyOf": [field.kind.schema, {"type": "null"}]}
    told = told | ({"description": field.about} if field.about else {})
    return told | ({"default": field.default} if field.default not in (None, (), {}) else {})


def shown(value: Any) -> str:
    """``value`` in a message, cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)} keys"
    text = "null" if value is None else repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(key: str, at: str, fields: Mapping[str, Field]) -> ApiError:
    near: Sequence[str] = difflib.get_close_matches(key[:80], fields, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(fields)}"
    name = _join(at, key if len(key) <= 80 else f"{key[:77]}...")
    return bad(f"is not a field that is known here; {hint}", name, "unknown_parameter")


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
