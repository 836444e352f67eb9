"""Functions as schemas."""

from __future__ import annotations

import enum
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


def test_schema_equals_transformers() -> None:
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")

    def plain(x: float, words: list[str], mode: Literal["a", "b"] = "a", k: int | None = None) -> None:
        """Do a thing.

        Args:
            x: A number
            words: Some words,
                several of them
            mode: Which one
            k: How many
        """

    expected = oracle.get_json_schema(plain)
    expected["function"].pop("return", None)
    assert schema(plain) == expected


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

    for function, complaint in (
        (silent, "no docstring"),
        (untyped, "no type"),
        (undescribed, "no description"),
        (odd, "no JSON schema"),
    ):
        with pytest.raises(UsageError, match=complaint):
            schema(function)
