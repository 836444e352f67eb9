"""Functions that a model may call, and the loop that calls them: reply, calls, results, next reply.

Comes in: Python functions (or a file of them) and messages. Goes out: the messages that follow. Before each call
``allow`` is asked. Whatever goes wrong with a call is told to the model as its result, so that it can do better: a
wrong argument, an exception in the function, a result that is no JSON, a call that was not allowed.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from whippet.chat.messages import Message, ToolCall
from whippet.chat.render import Renderer
from whippet.chat.tool_arguments import ArgumentError, bind
from whippet.chat.tools import schema
from whippet.errors import DataError, UsageError
from whippet.infer.model import Model
from whippet.infer.prompts import Messages, conversation

MAX_ROUNDS = 8
"""Replies with calls in a row, after which the model gets no more."""
MAX_RESULT = 64 * 1024
"""Characters of a result."""
ID = re.compile("[A-Za-z0-9]{9}")
LETTERS = string.ascii_letters + string.digits
REFUSED = "the user did not allow this call"
Allow = Callable[[ToolCall], bool]


class Toolbox:
    """Functions by name. ``schemas`` describe them to a model, in OpenAI's form. UsageError for one without types or
    docstring, or two of one name."""

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}
        self.schemas: list[dict[str, Any]] = []
        for function in functions:
            made = schema(function)
            name = made["function"]["name"]
            if name in self._functions:
                raise UsageError(f"two tools are called {name}")
            self._functions[name] = function
            self.schemas.append(made)

    @property
    def names(self) -> list[str]:
        return list(self._functions)

    def call(self, call: ToolCall) -> str:
        """The result as JSON; ``{"error": ...}`` where there is none."""
        function = self._functions.get(call.name)
        if function is None:
            return _error(f"there is no tool {call.name!r:.60}; there are: {', '.join(self.names)}")
        try:
            placed, named = bind(function, call.arguments)
        except ArgumentError as error:
            return _error(str(error))
        try:
            return _encoded(call.name, function(*placed, **named))
        except BaseException as error:
            if not isinstance(error, Exception):
                raise  # Ctrl-C, or the program's end
            return _error(f"{type(error).__name__}: {error}")

    def results(self, message: Message, allow: Allow) -> list[Message]:
        """What the calls of ``message`` bring, in their order: each a message of the role ``tool``."""
        return [
            Message("tool", self.call(call) if allow(call) else _error(REFUSED), tool_call_id=call.id, name=call.name)
            for call in message.tool_calls
        ]


def load_toolbox(path: Path) -> Toolbox:
    """The public functions with a docstring that the Python file at ``path`` itself defines. It is run, as importing it
    would. UsageError if it cannot be run or defines none."""
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path} is no Python file")
    spec = importlib.util.spec_from_file_location(f"whippet_tools_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    own = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and value.__module__ == module.__name__
        and value.__doc__
    ]
    if not own:
        raise UsageError(f"{path} defines no public function with a docstring")
    return Toolbox(own)


def converse(
    model: Model, messages: str | Messages, toolbox: Toolbox, *, allow: Allow, rounds: int = MAX_ROUNDS, **sampling: Any
) -> list[Message]:
    """What follows ``messages``: calls and their results, and the reply that makes no more calls. After ``rounds``
    rounds of calls the last message may still hold some; they have not been made then."""
    asked = conversation(messages, toolbox.schemas)
    start = len(asked.messages)
    for turn in range(rounds + 1):
        stream = model.chat_stream(asked, **sampling).drain()
        reply = model.renderer.parse(stream.text, toolbox.schemas)
        last = not reply.tool_calls or turn == rounds
        more = [reply] if last else called(asked.messages, reply, toolbox, allow, model.renderer)
        asked = replace(asked, messages=(*asked.messages, *more))
        if last:
            break
    return list(asked.messages[start:])


def called(
    before: Sequence[Message], reply: Message, toolbox: Toolbox, allow: Allow, renderer: Renderer
) -> list[Message]:
    """``reply`` with the results of its calls, as its template can render them after ``before``: some know one call in
    a turn, or no text beside a call, and what they do not know is told in more turns."""
    whole = with_ids(reply, before)
    calls = whole.tool_calls
    results = toolbox.results(whole, allow)
    apart = [
        message
        for call, result in zip(calls, results, strict=True)
        for message in (Message("assistant", "", (call,)), result)
    ]
    said = [Message("assistant", reply.content)] if reply.content else []
    together, split = [whole, *results], [*said, *apart]
    return together if _is_told([*before, *together], reply.content, toolbox, renderer) else split


def with_ids(reply: Message, before: Sequence[Message] | None) -> Message:
    """``reply`` with an id for each call that has none of its own, of the form that Mistral's templates insist on.
    They count the calls of ``before``, so that a talk that is held again is the same. Where it is not known what came
    before (None; a client may send a part of it), they are drawn."""
    taken = {call.id for message in before or () for call in message.tool_calls}
    made = sum(len(message.tool_calls) for message in before or ())
    calls: list[ToolCall] = []
    for place, call in enumerate(reply.tool_calls, made):
        fits = call.id is not None and call.id not in taken and ID.fullmatch(call.id)
        new = f"call{place:05d}" if before is not None else "".join(secrets.choice(LETTERS) for _ in range(9))
        calls.append(call if fits else replace(call, id=new))
        taken.add(calls[-1].id)
    return replace(reply, tool_calls=tuple(calls))


def _is_told(messages: Sequence[Message], content: str, toolbox: Toolbox, renderer: Renderer) -> bool:
    """Whether the template renders ``messages``, with ``content`` among them: some leave out a text beside calls."""
    try:
        ids = renderer.prompt_ids(messages, toolbox.schemas)
    except DataError:
        return False
    return content.strip() in renderer.tokenizer.decode(ids)


def _encoded(name: str, value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)  # half a character, as names of files may hold: written as its escape
    except (TypeError, ValueError, RecursionError) as error:
        return _error(f"what {name} returned cannot be written as JSON: {error}")
    if len(text) > MAX_RESULT:
        return _error(f"what {name} returned has {len(text)} characters, more than {MAX_RESULT}")
    return text


def _error(message: str) -> str:
    return json.dumps({"error": message[:1000]})
