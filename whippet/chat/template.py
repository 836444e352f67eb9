"""Chat templates: a conversation as the text that a model is trained on and prompted with.

Comes in: a template's source (a checkpoint's own, one of ours by name, a ``.jinja`` file) and a ``Conversation``.
Goes out: text, equal to what transformers renders. Templates are programs of strangers; ``sandbox.py`` holds them.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from whippet.chat.budget import Budget
from whippet.chat.messages import Conversation
from whippet.chat.sandbox import Sandbox
from whippet.errors import DataError, ModelError, UsageError

MAX_SOURCE = 64 * 1024
TEMPLATES = resources.files("whippet.chat") / "templates"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. marks: the spans ``[start, end)`` in it that ``{% generation %}`` blocks put out."""

    text: str
    marks: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A compiled template. ``name`` is how messages call it; the special tokens are what it may print, and
    ``variables`` whatever else it looks up by name (``date_string``, ``enable_thinking``, ...)."""

    def __init__(
        self,
        source: str,
        *,
        name: str,
        bos_token: str = "",
        eos_token: str = "",
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self._given = {"bos_token": bos_token, "eos_token": eos_token, **(variables or {})}
        self._template = _compile(source, name)
        self.has_marks = _has_marks(source)

    def render(
        self, conversation: Conversation, *, add_generation_prompt: bool = False, now: datetime | None = None
    ) -> str:
        """The text of ``conversation``. ``now`` is the time that templates with a date print, by default the present.

        DataError if the template refuses the conversation, ModelError if the template itself is unusable or unsafe.
        """
        return self.render_marked(conversation, add_generation_prompt=add_generation_prompt, now=now).text

    def render_marked(
        self, conversation: Conversation, *, add_generation_prompt: bool = False, now: datetime | None = None
    ) -> Rendered:
        """``render``, with the spans that the template marks as the assistant's own."""
        messages = [message.as_template_value() for message in conversation.messages]
        return self.render_values(
            messages, list(conversation.tools), add_generation_prompt, now, conversation.template_variables
        )

    def render_values(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        add_generation_prompt: bool = False,
        now: datetime | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """``render_marked`` for messages in the form that templates see; ``variables`` win over the template's own."""
        sandbox = self._template.environment
        assert isinstance(sandbox, Sandbox)
        parts: list[str] = []
        try:
            sandbox.spend(Budget((messages, tools, dict(variables or {}))), now)
            stream = self._template.generate(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._given, **(variables or {})},
            )
            for part in stream:
                parts.append(part)
                sandbox.emitted(len(part))
            text = sandbox.budget.join(parts)
            _check_characters(text)
        except SecurityError as error:
            raise ModelError(f"chat template {self.name} was stopped: {error}") from error
        except TemplateError as error:
            raise DataError(f"chat template {self.name} cannot render this conversation: {str(error)[:500]}") from error
        except (OverflowError, RuntimeError, MemoryError) as error:
            # A range that is too long, a recursion that is too deep: no conversation that fits asks for that.
            raise ModelError(f"chat template {self.name} was stopped: {_line(error)}") from error
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"chat template {self.name} fails on this conversation: {_line(error)}") from error
        spans = [(start, start + len(held)) for start, held in sandbox.marks if text.startswith(held, start)]
        return Rendered(text, tuple(spans))


def named_template(name: str, also: tuple[str, ...] = ()) -> str:
    """The source of one of our templates; UsageError names the nearest if there is none called ``name``. ``also``:
    further names that might have been meant."""
    if name not in template_names():
        known = sorted({*template_names(), *also})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"no chat template is called {name!r:.60}{hint} (known: {', '.join(known)})")
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def template_names() -> tuple[str, ...]:
    """The names that ``data.template`` and ``--template`` accept, beside paths of ``.jinja`` files."""
    return tuple(sorted(entry.name.removesuffix(".jinja") for entry in TEMPLATES.iterdir() if entry.is_file()))


@functools.lru_cache(maxsize=64)
def _compile(source: str, name: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise ModelError(f"chat template {name} has {len(source)} characters, wanted at most {MAX_SOURCE}")
    sandbox = Sandbox()
    sandbox.spend(Budget(()), None)
    try:
        return sandbox.from_string(source)
    except TemplateSyntaxError as error:
        raise ModelError(f"chat template {name}, line {error.lineno}: {error.message}") from error
    except TemplateError as error:
        raise ModelError(f"chat template {name} is refused: {error}") from error
    except (AssertionError, SyntaxError, RecursionError, MemoryError, OverflowError, ValueError, TypeError) as error:
        raise ModelError(f"chat template {name} cannot be compiled: {_line(error)}") from error


def _check_characters(text: str) -> None:
    """Conversations hold none, but a template can write half of a UTF-16 pair as an escape; nothing can encode that."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SecurityError(f"it writes {error.object[error.start]!r}, half of a UTF-16 pair") from error


def _has_marks(source: str) -> bool:
    return "endgeneration" in source


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}".rstrip(": ")
