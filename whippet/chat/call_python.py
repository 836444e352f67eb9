"""Tool calls in Python's syntax: ``[f(x=1, y="a"), g()]`` (Llama 3.2 and 3.3) and ``tool.call(query="...")``.

Only this much of Python is read: calls with keyword arguments whose values are texts, numbers, truth values, None,
lists, tuples and dictionaries with texts as keys. JSON's ``true``, ``false`` and ``null`` are taken too, as models
write them. Nothing is evaluated, and Python's own parser is not asked: it can be driven out of its stack.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from whippet.chat.call_json import MAX_DEPTH, Malformed, check_values
from whippet.chat.messages import ToolCall

SPACE = re.compile(r"\s*")
NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
KEY = re.compile(r"([^\W\d]\w*)\s*=(?!=)")
NUMBER = re.compile(r"[+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
TEXTS = {
    quote: re.compile(rf"{quote}((?:[^\\{quote[0]}{end}]|{inner}\\.)*){quote}", re.DOTALL)
    for quote, end, inner in (
        ('"""', "", r'"(?!"")|'),
        ("'''", "", r"'(?!'')|"),
        ('"', r"\n", ""),
        ("'", r"\n", ""),
    )
}
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL)
ESCAPED = {"\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
           "v": "\v"}  # fmt: skip
WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
WORD = re.compile(rf"(?:{'|'.join(WORDS)})\b")
MAX_DIGITS = 300
CLOSING = {"[": "]", "(": ")", "{": "}"}


def read_listed(text: str, start: int) -> tuple[list[ToolCall], int]:
    """The calls of the list that begins at ``start``, and where it ends."""
    reader = _Reader(text, start)
    reader.take("[")
    calls: list[ToolCall] = []
    while not reader.takes("]"):
        if calls:
            reader.take(",")
            if reader.takes("]"):
                break
        calls.append(reader.call())
    return calls, reader.place


def read_built_in(text: str) -> ToolCall | None:
    """The call in ``tool.call(x=1)``, None if ``text`` is anything else."""
    try:
        reader = _Reader(text, 0)
        call = reader.call()
    except Malformed:
        return None
    if text[reader.place :].strip() or not call.name.endswith(".call"):
        return None
    return ToolCall(call.name.removesuffix(".call"), call.arguments)


class _Reader:
    """Walks over a text once; ``place`` is how far it came."""

    def __init__(self, text: str, place: int) -> None:
        self._text = text
        self.place = place

    def call(self) -> ToolCall:
        """``name(key=value, ...)``; the name may hold dots."""
        name = self._match(NAME)
        if name is None:
            self._stop("wanted the name of a function")
        self.take("(")
        arguments: dict[str, Any] = {}
        while not self.takes(")"):
            if arguments:
                self.take(",")
                if self.takes(")"):
                    break
            key = self._match(KEY)
            if key is None:
                self._stop("wanted an argument with its name")
            if key[1] in arguments:
                self._stop(f"the argument {key[1]:.60} is given twice")
            arguments[key[1]] = self._value(0)
        check_values([arguments])
        return ToolCall(name[0], arguments)

    def take(self, mark: str) -> None:
        if not self.takes(mark):
            self._stop(f"wanted {mark!r}")

    def takes(self, mark: str) -> bool:
        """Whether ``mark`` comes next; it is then passed, as spaces are."""
        self._match(SPACE)
        if not self._text.startswith(mark, self.place):
            return False
        self.place += len(mark)
        return True

    def _value(self, depth: int) -> Any:
        self._match(SPACE)
        if depth > MAX_DEPTH:
            self._stop(f"nested deeper than {MAX_DEPTH}")
        first = self._text[self.place : self.place + 1]
        if first in ("'", '"'):
            return self._string()
        if first in CLOSING and first:
            self.place += 1
            return self._mapping(depth) if first == "{" else self._items(CLOSING[first], depth)
        number = self._match(NUMBER)
        if number is not None:
            return self._number(number[0])
        word = self._match(WORD)
        if word is None:
            self._stop("wanted a text, a number, True, False, None, a list or a dictionary")
        return WORDS[word[0]]

    def _items(self, closing: str, depth: int) -> Any:
        """A list or tuple, whose opening bracket has been passed. One value in round brackets is just that value."""
        items: list[Any] = []
        commas = 0
        while not self.takes(closing):
            if items:
                self.take(",")
                commas += 1
                if self.takes(closing):
                    break
            items.append(self._value(depth + 1))
        return items[0] if closing == ")" and len(items) == 1 and not commas else items

    def _mapping(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        first = True
        while not self.takes("}"):
            if not first:
                self.take(",")
                if self.takes("}"):
                    break
            first = False
            self._match(SPACE)
            if self._text[self.place : self.place + 1] not in ("'", '"'):
                self._stop("wanted a text as a key")
            key = self._string()
            self.take(":")
            made[key] = self._value(depth + 1)
        return made

    def _string(self) -> str:
        start = self.place
        quote = next(quote for quote in TEXTS if self._text.startswith(quote, start))
        match = self._match(TEXTS[quote])
        if match is None:
            self._stop("a text without its end")
        return ESCAPE.sub(self._unescaped, match[1])

    def _unescaped(self, match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code is not None or match[4] is not None:
            point = int(code, 16) if code is not None else int(match[4], 8)
            return chr(point) if point < 0x110000 else self._stop(f"\\U{code} is no character")
        if match[5] == "N":
            self._stop("\\N{...} is not read")
        # Python keeps the backslash before a letter that it does not know.
        return ESCAPED.get(match[5], match[0])

    def _number(self, written: str) -> int | float:
        digits = written.replace("_", "")
        if len(digits) > MAX_DIGITS:
            self._stop("a number of too many digits")
        return int(digits) if digits.lstrip("+-").isdigit() else float(digits)

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self.place)
        if match is not None:
            self.place = match.end()
        return match

    def _stop(self, why: str) -> NoReturn:
        raise Malformed(f"{why} at character {self.place}")
