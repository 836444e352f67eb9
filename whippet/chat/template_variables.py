"""What a chat template may be told besides the chat: ``date_string``, ``enable_thinking``, ``tools_in_user_message``.

Comes in: a template's source, and values by name. Goes out: the names that it reads, complaints, and the source with
values written into it as defaults, so that whoever renders it later without naming them gets the text of training.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError

from whippet.chat.budget import Budget
from whippet.chat.sandbox import Sandbox
from whippet.errors import UsageError

GIVEN = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "unk_token", "pad_token")
)
"""What the renderer itself tells a template."""
IN_MACROS = frozenset(("caller", "varargs", "kwargs"))
WANTED = "text, a number, true or false, or a list or table of these"


def check_variables(variables: Mapping[str, Any], sources: Sequence[tuple[str, str]]) -> None:
    """UsageError for a name that none of ``sources`` (as in ``unknown``) reads, or a value that none can be told."""
    for name, value in variables.items():
        if not sources:
            raise UsageError(f"template variable {name!r:.60}: this checkpoint has no chat template that could read it")
        if told := unknown(name, sources):
            raise UsageError(f"template variables: {told}")
        if told := wrong_value(value):
            raise UsageError(f"template variable {name} {told}")


def unknown(name: str, sources: Sequence[tuple[str, str]]) -> str:
    """What is wrong with giving ``name`` to templates, of which ``sources`` are called names and texts; '' if one of
    them reads it."""
    if name in GIVEN:
        return f"{name!r} comes from the conversation or the tokenizer, and cannot be set"
    read: set[str] = set().union(*(read_by(source) for _, source in sources))
    if name in read:
        return ""
    called = " and ".join(called for called, _ in sources)
    near = difflib.get_close_matches(name, read, n=1, cutoff=0.7)
    known = f"did you mean {near[0]!r}?" if near else f"it reads {', '.join(sorted(read)) or 'none'}"
    return f"chat template {called} reads no variable {name!r:.60}; {known}"


def wrong_value(value: Any) -> str:
    """What is wrong with a value, '' if a template can be told it and any file can hold it."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "holds half of a UTF-16 pair, which is no character"
        return ""
    if isinstance(value, list | tuple):
        return next(filter(None, map(wrong_value, value)), "")
    if isinstance(value, Mapping):
        return next(filter(None, map(wrong_value, (*value, *value.values()))), "")
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return ""
    return f"is {value!r:.40}; wanted {WANTED}"


def with_defaults(source: str, variables: Mapping[str, Any]) -> str:
    """``source``, which takes for each variable that it reads the value given here unless it is told another."""
    read = read_by(source) if variables else frozenset()
    # The newline belongs to the tag, since blocks are trimmed; the source begins a line, as it did.
    lines = [
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}\n"
        for name, value in variables.items()
        if name in read
    ]
    defaults = "".join(lines)
    return source if source.startswith(defaults) else defaults + source


@lru_cache(maxsize=64)
def read_by(source: str) -> frozenset[str]:
    """The names that a template looks up and does not always set itself first, ``GIVEN`` ones left out. Empty for one
    that does not compile, whose fault is told elsewhere."""
    sandbox = Sandbox()
    sandbox.spend(Budget(()), None)
    found = _Names()
    try:
        tree = sandbox.parse(source)
        found.walk(tree.body, {*sandbox.globals, *(macro.name for macro in tree.find_all(nodes.Macro))})
    except (TemplateError, AssertionError, RecursionError, MemoryError, OverflowError, ValueError, TypeError):
        return frozenset()
    return frozenset(found.read - GIVEN)


class _Names:
    """Follows assignments through a template. A name that was set on every way to where it is read is the template's
    own."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def walk(self, statements: Iterable[nodes.Node], known: set[str]) -> bool:
        """Read ``statements`` one after the other, adding what they set to ``known``; whether their end is reached."""
        ends = [self._step(node, known) for node in statements]
        return all(ends)

    def _step(self, node: nodes.Node, known: set[str]) -> bool:
        match node:
            case nodes.Name(ctx="load", name=name):
                self.read |= {name} - known
            case nodes.Name(name=name):
                known.add(name)
            case nodes.Assign():
                self.walk((node.node, node.target), known)
            case nodes.AssignBlock():
                self.walk(node.body, {*known})
                self._step(node.target, known)
            case nodes.If():
                return self._branches(node, known)
            case nodes.For():
                self._step(node.iter, known)
                inside = {*known, "loop"}
                self.walk([node.target, *([node.test] if node.test else []), *node.body], inside)
                self.walk(node.else_, {*known})
            case nodes.Macro():
                self.walk([*node.defaults, *node.args, *node.body], {*known, *IN_MACROS})
            case nodes.CallBlock():
                self._step(node.call, known)
                self.walk([*node.defaults, *node.args, *node.body], {*known, *IN_MACROS})
            case nodes.Output() if any(_raises(part) for part in node.nodes):
                self.walk(node.nodes, known)
                return False
            case nodes.With() | nodes.Scope() | nodes.FilterBlock():
                self.walk(node.iter_child_nodes(), {*known})
            case _:
                self.walk(node.iter_child_nodes(), known)
        return True

    def _branches(self, node: nodes.If, known: set[str]) -> bool:
        """What every branch that goes on has set is known after them."""
        ends: list[set[str]] = []
        for test, body in [(one.test, one.body) for one in (node, *node.elif_)]:
            self._step(test, known)
            within = {*known}
            if self.walk(body, within):
                ends.append(within)
        within = {*known}
        if self.walk(node.else_, within):
            ends.append(within)
        if ends:
            known |= set.intersection(*ends)
        return bool(ends)


def _raises(node: nodes.Node) -> bool:
    match node:
        case nodes.Call(node=nodes.Name(name="raise_exception")):
            return True
    return False


def _literal(value: Any) -> str:
    """``value`` as Jinja writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)
