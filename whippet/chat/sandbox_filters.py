"""The filters and text methods that templates may use, each bounded before it works.

Comes in: a sandbox and its budget. Goes out: ``guarded_filters`` (Jinja's own where they are harmless) and
``call_text_method``. A filter that is missing here is unknown to a template, which is an error that names it.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter

from whippet.chat.budget import WIDE_NUMBER, Budget

MAX_INDENT = 64
MAX_PRECISION = 32
MAX_BATCH = 4096
# fmt: off
KEPT = (
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max",
    "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort",
    "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper",
)
ITERATING = frozenset((
    "batch", "groupby", "join", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "select",
    "selectattr", "slice", "sort", "unique",
))
# fmt: on
WORD = re.compile(r"\S+")
LINE_END = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
TITLE_BREAK = re.compile(r"[-\s({\[<]")


class HasBudget(Protocol):
    """What filters need to know of the sandbox."""

    @property
    def budget(self) -> Budget: ...


def guarded_filters(sandbox: HasBudget) -> dict[str, Callable[..., Any]]:
    """The table of filters, with every argument checked and every result charged to the sandbox's budget."""
    table = {name: _guarded(sandbox, name, FILTERS[name]) for name in KEPT}
    table["tojson"] = _guarded(sandbox, "tojson", _tojson)
    return table


def _guarded(sandbox: HasBudget, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    offset = 1 if hasattr(function, "jinja_pass_arg") else 0
    check = CHECKS.get(name)
    iterating = name in ITERATING

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = sandbox.budget
        held, value, rest = args[:offset], args[offset], args[offset + 1 :]
        if check is not None:
            check(budget, value, *rest, **kwargs)
        if iterating:
            value = _iterable(budget, value, name)
        if name == "format":
            return budget.accept(budget.percent(str(value), kwargs or rest))
        if name == "sum":
            return _sum(budget, function, held, value, rest, kwargs)
        return budget.accept(function(*held, value, *rest, **kwargs))

    return guarded


def _iterable(budget: Budget, value: Any, name: str) -> Any:
    """What a filter may walk through: a text is counted as its pieces, and hashing is done under the clock."""
    if isinstance(value, str):
        budget.pieces(value, len(value))
        return value
    return budget.watch(value) if name == "unique" else value


def _sum(budget: Budget, function: Callable[..., Any], held: Any, value: Any, rest: Any, kwargs: dict[str, Any]) -> Any:
    start = kwargs.get("start", rest[1] if len(rest) > 1 else 0)
    if not isinstance(start, int | float):
        raise SecurityError("the filter 'sum' adds numbers only; use 'join' or '+'")
    return budget.accept(function(*held, value, *rest, **kwargs))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter, as transformers has it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_tojson(budget: Budget, value: Any, *rest: Any, **kwargs: Any) -> None:
    indent = kwargs.get("indent", rest[1] if len(rest) > 1 else None)
    separators = kwargs.get("separators", rest[2] if len(rest) > 2 else None) or ()
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > MAX_INDENT or any(len(text) > MAX_INDENT for text in separators):
        raise SecurityError(f"tojson indents by at most {MAX_INDENT}, met {width}")
    budget.allow(6 * budget.weigh(value) + (budget.weigh(value) // 32) * width)


def _check_center(budget: Budget, value: Any, width: int = 80) -> None:
    budget.allow(budget.weigh(value) + 4 * width)


def _check_indent(budget: Budget, value: Any, width: int | str = 4, *rest: Any, **kwargs: Any) -> None:
    text = str(value)
    lines = 2 + sum(1 for _ in LINE_END.finditer(text))
    size = 4 * (len(width) if isinstance(width, str) else width)
    budget.pieces(text, lines)
    budget.allow(lines * (size + 4) + 4 * sys.getsizeof(text))


def _check_replace(budget: Budget, value: Any, old: Any, new: Any, count: int | None = None) -> None:
    _allow_replace(budget, _plain(budget, value), _plain(budget, old), _plain(budget, new), count)


def _allow_replace(budget: Budget, text: str, old: str, new: str, count: int | None) -> None:
    times = text.count(old)
    times = times if count is None or count < 0 else min(times, count)
    budget.allow(sys.getsizeof(text) + times * sys.getsizeof(new))


def _check_join(budget: Budget, value: Any, separator: Any = "", *rest: Any, **kwargs: Any) -> None:
    if isinstance(value, Iterator):
        return
    length = len(value) if hasattr(value, "__len__") else 0
    budget.allow(2 * budget.weigh(value) + length * budget.weigh(separator))


def _check_batch(budget: Budget, value: Any, *rest: Any, **kwargs: Any) -> None:
    number = rest[0] if rest else kwargs.get("linecount", kwargs.get("slices"))
    if not isinstance(number, int) or number > MAX_BATCH:
        raise SecurityError(f"batch and slice take a number of at most {MAX_BATCH}, met {number!r:.40}")


def _check_round(budget: Budget, value: Any, precision: int = 0, *rest: Any, **kwargs: Any) -> None:
    if not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise SecurityError(f"round takes at most {MAX_PRECISION} digits, met {precision!r:.40}")


def _check_string(budget: Budget, value: Any, *rest: Any, **kwargs: Any) -> None:
    budget.allow(6 * budget.weigh(value))


def _check_title(budget: Budget, value: Any) -> None:
    text = _plain(budget, value)
    budget.pieces(text, 2 + 2 * sum(1 for _ in TITLE_BREAK.finditer(text)))


def _plain(budget: Budget, value: Any) -> str:
    budget.allow(2 * budget.weigh(value))
    return str(value)


CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_batch,
    "capitalize": _check_string,
    "center": _check_center,
    "e": _check_string,
    "escape": _check_string,
    "format": _check_string,
    "indent": _check_indent,
    "join": _check_join,
    "lower": _check_string,
    "replace": _check_replace,
    "round": _check_round,
    "safe": _check_string,
    "slice": _check_batch,
    "string": _check_string,
    "title": _check_title,
    "tojson": _check_tojson,
    "trim": _check_string,
    "upper": _check_string,
}


def call_text_method(
    sandbox: SandboxedEnvironment, budget: Budget, method: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Call a method of a text, having made sure that its result is not far larger than what it is given."""
    text: str = method.__self__  # type: ignore[attr-defined]
    name = method.__name__
    if name == "format" and type(text) is not str:
        raise SecurityError("a text marked safe cannot be formatted")
    if name == "format":
        return _Formatter(sandbox, budget).vformat(text, args, kwargs)
    if name == "join" and len(args) == 1:
        return budget.join(budget.watch(args[0]), text)
    if name in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int):
        budget.allow(sys.getsizeof(text) + 4 * args[0])
    elif name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        _allow_replace(budget, text, args[0], args[1], kwargs.get("count", args[2] if len(args) > 2 else None))
    elif name in ("split", "rsplit"):
        separator = kwargs.get("sep", args[0] if args else None)
        found = text.count(separator) if separator else sum(1 for _ in WORD.finditer(text))
        budget.pieces(text, found + 1)
    elif name == "splitlines":
        budget.pieces(text, 1 + sum(1 for _ in LINE_END.finditer(text)))
    return method(*args, **kwargs)


class _Formatter(SandboxedFormatter):
    """``str.format`` with attribute look-up through the sandbox, and bounded widths."""

    def __init__(self, sandbox: SandboxedEnvironment, budget: Budget) -> None:
        super().__init__(sandbox)
        self._budget = budget

    def format_field(self, value: Any, format_spec: str) -> str:
        if WIDE_NUMBER.search(format_spec):
            raise SecurityError("the template formats with a width above 999")
        self._budget.allow(2 * self._budget.weigh(value))
        made = str(super().format_field(value, format_spec))
        self._budget.charge(sys.getsizeof(made))
        return made

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._budget.allow(6 * self._budget.weigh(value))
        return super().convert_field(value, conversion)
