"""Functions as schemas, replies as calls."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest

from whippet.chat.messages import Message, ToolCall
from whippet.chat.tools import parse_reply, schema
from whippet.errors import UsageError

END = "</tool_call>"
TWO_CALLS = "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in "fg")


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


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
        ('<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
        ('<tool_call>\n{"name": "f", "arguments": {"a": "</x>"}}\n</tool_call>', "", [("f", {"a": "</x>"})]),
        ('Let me.\n<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "Let me.", [("f", {"a": 1})]),
        (TWO_CALLS, "", [("f", {}), ("g", {})]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "", [("f", {"a": END})]),
        ("plain text", "plain text", []),
        (" spaces kept ", " spaces kept ", []),
        ('{"name": "f", "parameters": {', '{"name": "f", "parameters": {', []),
        ('{"name": 3, "parameters": {}}', '{"name": 3, "parameters": {}}', []),
        ('{"name": "f", "parameters": [1]}', '{"name": "f", "parameters": [1]}', []),
        ('{"name": "f"}', '{"name": "f"}', []),
        ("[1]", "[1]", []),
        ("<tool_call>broken</tool_call>", "<tool_call>broken</tool_call>", []),
        ('<tool_call>{"name": "f", "arguments": {}}', '<tool_call>{"name": "f", "arguments": {}}', []),
        ("[" * 100_000, "[" * 100_000, []),
    ],
)  # fmt: skip
def test_parse_reply(text: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    expected = Message("assistant", content, tuple(ToolCall(name, arguments) for name, arguments in calls))
    assert parse_reply(text) == expected
