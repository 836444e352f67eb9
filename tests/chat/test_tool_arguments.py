"""A call's JSON as what the function takes."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest

from whippet.chat.tool_arguments import ArgumentError, bind


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = 1


def weather(
    city: str,
    /,
    days: int = 1,
    height: float = 0.0,
    *,
    unit: Unit = Unit.CELSIUS,
    detail: Literal["low", 2] | None = None,
    tags: list[str] | None = None,
    place: tuple[float, float] | None = None,
    extra: dict[str, int] | None = None,
    number: int | str = 0,
    sure: bool = False,
    anything: Any = None,
) -> None: ...


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, {}),
        ({"days": "10", "height": 2, "sure": "True"}, {"days": 10, "height": 2.0, "sure": True}),
        ({"days": 3.0, "height": "1e2", "number": "7"}, {"days": 3, "height": 100.0, "number": "7"}),
        ({"days": str(2**60 + 1)}, {"days": 2**60 + 1}),
        ({"unit": "celsius", "detail": None}, {"unit": Unit.CELSIUS, "detail": None}),
        ({"unit": 1, "detail": 2}, {"unit": Unit.KELVIN, "detail": 2}),
        ({"tags": ["a"], "place": [1, 2.5]}, {"tags": ["a"], "place": (1.0, 2.5)}),
        ({"extra": {"a": "1"}, "anything": [{}]}, {"extra": {"a": 1}, "anything": [{}]}),
    ],
)
def test_arguments_of_the_types_that_are_wanted(given: dict[str, Any], taken: dict[str, Any]) -> None:
    placed, named = bind(weather, {"city": "Oslo"} | given)
    assert placed == ("Oslo",)
    assert {key: named[key] for key in taken} == taken
    assert [type(named[key]) for key in taken] == [type(value) for value in taken.values()]
    weather(*placed, **named)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "the argument city is missing"),
        ({"city": 3}, "city: wanted a text, met 3"),
        ({"city": "x", "day": 1}, "there is no argument 'day'; there are: city, days"),
        ({"city": "x", "days": "three"}, "days: wanted an integer, met 'three'"),
        ({"city": "x", "days": 1.5}, "days: wanted an integer"),
        ({"city": "x", "days": 1e999}, "days: wanted an integer"),
        ({"city": "x", "days": True}, "days: wanted an integer, met True"),
        ({"city": "x", "height": "inf"}, "height: wanted a number, met 'inf'"),
        ({"city": "x", "height": 10**400}, "height: wanted a number"),
        ({"city": "x", "sure": 1}, "sure: wanted true or false"),
        ({"city": "x", "unit": "fahrenheit"}, "unit: wanted one of 'celsius', 1, met 'fahrenheit'"),
        ({"city": "x", "unit": True}, "unit: wanted one of"),
        ({"city": "x", "detail": "2"}, "detail: wanted one of 'low', 2, met '2'"),
        ({"city": "x", "tags": "a"}, "tags: wanted a list, met 'a'"),
        ({"city": "x", "tags": [1]}, "tags[0]: wanted a text, met 1"),
        ({"city": "x", "place": [1]}, "place: wanted a list of 2, met one of 1"),
        ({"city": "x", "number": []}, "number: wanted an integer or a text, met []"),
        ({"city": "x", "extra": {"a": "b"}}, "extra.a: wanted an integer, met 'b'"),
    ],
)
def test_arguments_that_are_told_back(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ArgumentError) as error:
        bind(weather, given)
    assert complaint in str(error.value)
