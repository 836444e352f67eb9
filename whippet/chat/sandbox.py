"""Jinja for templates that come from strangers: what they may reach, and what they may spend.

``Sandbox`` is Jinja's immutable sandbox made narrower: methods and filters by allow-list (``sandbox_filters.py``), no
includes, imports or blocks, and a pass over the syntax tree (``sandbox_syntax.py``) that puts a ``Budget``
(``budget.py``) under every loop, macro, literal, operator, filter and call. What it renders is what transformers
renders for the same template: the same whitespace rules, ``tojson``, ``raise_exception``, ``strftime_now``, loop
controls, ``{% generation %}`` blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from whippet.chat.budget import TICK_BYTES, Budget
from whippet.chat.sandbox_filters import call_text_method, guarded_filters
from whippet.chat.sandbox_syntax import guarded

MAX_STRFTIME = 128
MAX_TOKENS = 12_000
"""Of a template's source; the longest that are in use have about 3,000, and compiling takes time for each."""
# fmt: off
TEXT_METHODS = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
    "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper", "zfill",
))
LOOP_NAMES = frozenset((
    "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem",
    "revindex", "revindex0",
))
# fmt: on
REACHABLE: tuple[tuple[type, frozenset[str]], ...] = (
    (str, TEXT_METHODS),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    (list, frozenset(("copy", "count", "index"))),
    (tuple, frozenset(("count", "grouper", "index", "list"))),  # two of them name the fields of groupby's pairs
    (float, frozenset(("is_integer",))),
    (LoopContext, LOOP_NAMES),
    (Macro, frozenset(("arguments", "caller", "catch_kwargs", "catch_varargs", "name"))),
)
HIDDEN_ARGUMENTS = ("_loop_vars", "_block_vars")  # what compiled templates pass along for functions that ask for it


class _Rendering(threading.local):
    """What belongs to the rendering on one thread."""

    budget: Budget
    now: datetime | None
    emitted: int
    marks: list[tuple[int, str]]


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that templates are compiled in. A rendering runs between ``spend`` and the end of its thread's
    use of ``budget``; several threads may render at once."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=[GenerationMarks, loopcontrols],
        )
        self._local = _Rendering()
        self.concat = self._join  # type: ignore[method-assign] # what macros and set blocks gather is joined here
        self.filters = guarded_filters(self)
        self.globals = {
            "range": self.globals["range"],
            "dict": self._dict,
            "namespace": TemplateNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
        }

    @property
    def budget(self) -> Budget:
        """What the rendering on this thread may still spend."""
        return self._local.budget

    def spend(self, budget: Budget, now: datetime | None) -> None:
        """Let what this thread renders next draw on ``budget``; ``now`` is the time that it sees."""
        self._local.budget, self._local.now = budget, now
        self._local.emitted, self._local.marks = 0, []

    def emitted(self, size: int) -> None:
        """Tell how many characters the template has put out since the last call."""
        self._local.emitted += size

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Where ``{% generation %}`` blocks began in the output of this rendering, and what they held."""
        return self._local.marks

    def mark(self, text: str) -> None:
        """Note that a ``{% generation %}`` block puts out ``text`` next."""
        self._local.marks.append((self._local.emitted, text))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return guarded(super()._parse(source, name, filename))

    def _tokenize(
        self, source: str, name: str | None, filename: str | None = None, state: str | None = None
    ) -> TokenStream:
        stream = super()._tokenize(source, name, filename, state)
        return TokenStream(_bounded(stream), name, filename)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, Namespace):
            return True
        return any(isinstance(obj, kind) and attr in names for kind, names in REACHABLE)

    def wrap_str_format(self, value: Any) -> None:
        """``str.format`` is guarded where it is called, as the other methods of texts are."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            self.budget.repeat(left, right)
        elif operator == "**":
            self.budget.power(left, right)
        elif operator == "%" and isinstance(left, str):
            return self.budget.accept(self.budget.percent(left, right))
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.budget.allow(len(left) + len(right))
        for operand in (left, right):
            if type(operand) is int:
                self.budget.accept(operand)
        return self.budget.accept(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = __obj.__self__ if isinstance(__obj, MethodType | BuiltinMethodType) else None
        if owner is __self or isinstance(owner, str):
            kwargs = {name: value for name, value in kwargs.items() if name not in HIDDEN_ARGUMENTS}
        if owner is __self:
            return __obj(*args, **kwargs)
        if isinstance(owner, str):
            return __self.budget.accept(call_text_method(__self, __self.budget, __obj, args, kwargs))
        return __self.budget.accept(super().call(__context, __obj, *args, **kwargs))

    # What the syntax tree is rewritten to call.

    def guard_tick(self) -> None:
        self.budget.charge(TICK_BYTES)

    def guard_value(self, value: Any) -> Any:
        return self.budget.accept(value)

    def guard_loop(self, values: Any) -> Iterator[Any]:
        if isinstance(values, str):
            self.budget.pieces(values, len(values))
        return self.budget.watch(values)

    def guard_slice(self, value: Any, *bounds: Any) -> Any:
        return self.budget.accept(value[slice(*bounds)])

    def guard_concat(self, values: list[Any]) -> str:
        return self._join(_text(self.budget, value) for value in values)

    def _join(self, parts: Iterable[str]) -> str:
        return self.budget.join(parts)

    def _dict(self, pairs: Any = (), **named: Any) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, value in self.budget.watch(pairs.items() if isinstance(pairs, dict) else pairs):
            made[key] = value
        return self.budget.accept(made | named)

    def _strftime_now(self, form: str) -> str:
        if not isinstance(form, str) or len(form) > MAX_STRFTIME:
            raise SecurityError(f"strftime_now wants a text of at most {MAX_STRFTIME} characters, met {form!r:.40}")
        return (self._local.now or datetime.now()).strftime(form)


class TemplateNamespace(Namespace):
    """``namespace(...)``: names that a template sets one by one. Prints as nothing of what it holds."""

    def __init__(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        values = {**(values or {}), **named}
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class GenerationMarks(Extension):
    """``{% generation %}…{% endgeneration %}`` around what the assistant says: put out as it is, and noted."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("hold"), [], [], body).set_lineno(line)

    def hold(self, caller: Any) -> str:
        """Called by the compiled template with the block's body."""
        text = str(caller())
        sandbox = self.environment
        assert isinstance(sandbox, Sandbox)
        sandbox.mark(text)
        return text


def _bounded(tokens: Iterable[Token]) -> Iterator[Token]:
    for number, token in enumerate(tokens):
        if number >= MAX_TOKENS:
            raise SecurityError(f"it has more than {MAX_TOKENS} words and signs")
        yield token


def _text(budget: Budget, value: Any) -> str:
    budget.allow(2 * budget.weigh(value))
    return str(value)


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Everything that a template prints comes through here, still as a value."""
    budget = context.environment.budget  # type: ignore[attr-defined]
    budget.charge(16)
    return value if isinstance(value, str) else _text(budget, value)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message)[:500])


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a template may not set the name {name!r:.40} in a namespace")
