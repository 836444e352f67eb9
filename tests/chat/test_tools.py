"""Functions as schemas."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from typing import Any, Literal

import pytest

from whippet.chat.tools import schema
from whippet.errors import UsageError


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


def weather(
    city: str,
    days: int = 1,
    unit: Unit = Unit.CELSIUS,
    detail: Literal["low", "high"] | None = None,
    tags: list[str] | None = None,
    place: tuple[float, float] | None = None,
    extra: dict[str, int] | None = None,
    number: int | str = 0,
    anything: Any = None,
) -> str:
    """The weather of a city.

    It comes from the sky.

    Args:
        city: Where, such as
            "Köln": the name alone
        days (int): How many days
        unit: In which unit
        detail: How much
        tags: Words
        place: Instead of a name
        extra: More
        number: A number or word
        anything: Whatever

    Returns:
        A sentence.
    """
    raise NotImplementedError


def test_schema_of_a_function() -> None:
    made = schema(weather)["function"]
    assert made["name"] == "weather" and made["description"] == "The weather of a city.\n\nIt comes from the sky."
    properties = made["parameters"]["properties"]
    assert made["parameters"]["required"] == ["city"]
    assert properties["city"] == {"type": "string", "description": 'Where, such as "Köln": the name alone'}
    assert properties["days"] == {"type": "integer", "description": "How many days"}
    assert properties["unit"]["enum"] == ["celsius", "fahrenheit"]
    assert properties["detail"] == {
        "type": "string",
        "enum": ["low", "high"],
        "nullable": True,
        "description": "How much",
    }
    assert properties["tags"]["items"] == {"type": "string"}
    assert properties["place"]["prefixItems"] == [{"type": "number"}] * 2
    assert properties["extra"]["additionalProperties"] == {"type": "integer"}
    assert properties["number"]["type"] == ["integer", "string"]
    assert properties["anything"] == {"description": "Whatever"}


def get_current_temperature(location: str) -> float:
    """
    Get the current temperature at a location.

    Args:
        location: The location to get the temperature for, in the format "City, Country"
    Returns:
        The current temperature at the specified location in the specified units, as a float.
    """
    return 22.0


def plain(x: float, words: list[str], mode: Literal["a", "b"] = "a", k: int | None = None) -> None:
    """Do a thing.

    It takes a while.

    Args:
        x: A number
        words (list): Some words,
            several of them
        mode: Which one
        k: How many
    """


def pairs(either: list | tuple, mixed: Literal[1, "a", None], deep: dict[str, list[int]]) -> list[tuple[int, str]]:  # type: ignore[type-arg]
    """Pair up.

    Args:
        either: One
        mixed: Two: or three
        deep: Much

    Returns:
        Pairs
        of both

    Raises:
        ValueError: Never
    """
    raise NotImplementedError


def strange(a: Any) -> Unit | object:
    """Do.

    Args:
        a: A
    """
    return a


def test_the_function_of_the_llama_3_3_card() -> None:
    assert schema(get_current_temperature) == {
        "type": "function",
        "function": {
            "name": "get_current_temperature",
            "description": "Get the current temperature at a location.",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {
                        "type": "string",
                        "description": 'The location to get the temperature for, in the format "City, Country"',
                    }
                },
                "required": ["location"],
            },
            "return": {
                "type": "number",
                "description": "The current temperature at the specified location in the specified units, as a float.",
            },
        },
    }


@pytest.mark.parametrize("function", [get_current_temperature, plain, pairs, strange, weather])
def test_schema_equals_transformers(function: Callable[..., Any]) -> None:
    """To the order of keys, which a template prints."""
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")
    assert json.dumps(schema(function)) == json.dumps(oracle.get_json_schema(function))


def test_functions_that_tell_too_little() -> None:
    def silent(x: int) -> None: ...

    def untyped(x):  # type: ignore[no-untyped-def]
        """Do.

        Args:
            x: A number
        """

    def undescribed(x: int) -> None:
        """Do."""

    def odd(x: object) -> None:
        """Do.

        Args:
            x: A thing
        """

    def unresolved(x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Do.

        Args:
            x: A thing
        """

    for function, complaint in (
        (unresolved, "its types cannot be read: name 'Nowhere' is not defined"),
        (silent, "no docstring"),
        (untyped, "no type"),
        (undescribed, "no description"),
        (odd, "no JSON schema"),
    ):
        with pytest.raises(UsageError, match=complaint):
            schema(function)
