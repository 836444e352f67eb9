"""Tools in ``whippet chat``: ``--tools FILE.py`` offers the model the functions of a file, and each call is asked for.

Calls and results are told on standard error; the model's words stay what standard output holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whippet.cli.asking import visible
from whippet.errors import UsageError

if TYPE_CHECKING:
    from whippet.chat.messages import Message, ToolCall
    from whippet.cli.chat_session import Session, Voice
    from whippet.infer.tool_loop import Allow, Toolbox

SHOWN = 500
"""Characters of a call or a result that are shown."""


def configure(parser: argparse.ArgumentParser) -> None:
    tools = parser.add_argument_group("tools")
    tools.add_argument(
        "--tools", metavar="FILE.py", help="let the model call the public functions of this file, which is run"
    )
    tools.add_argument("--yes", action="store_true", help="call them without asking")


def load(args: argparse.Namespace) -> Toolbox | None:
    """The functions of ``--tools``, None without."""
    if args.tools is None:
        if args.yes:
            raise UsageError("--yes allows the calls of --tools FILE.py, which is not given")
        return None
    if args.compare is not None:
        raise UsageError("--tools cannot be joined with --compare")
    if not args.yes and not sys.stdin.isatty():
        raise UsageError("--tools asks before each call, which needs a terminal; --yes allows all of them")
    from whippet.infer.tool_loop import load_toolbox

    return load_toolbox(Path(args.tools).expanduser())


class Permission:
    """Asks whether a call may be made; ``a`` allows all from then on."""

    def __init__(self, *, always: bool) -> None:
        self._always = always

    def __call__(self, call: ToolCall) -> bool:
        arguments = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
        shown = _shown(f"{call.name}({arguments})")
        if self._always:
            _talk(f"calls {shown}")
            return True
        print(f"call {shown}? [y]es, [n]o, [a]ll: ", end="", file=sys.stderr, flush=True)
        try:
            said = input().strip().lower()
        except EOFError:
            said = ""
        self._always = said in ("a", "all")
        return self._always or said in ("y", "yes")


def rounds(session: Session, voice: Voice, allow: Allow) -> Iterator[Sequence[Message]]:
    """Once for each reply that the voice is to give now: after its calls, with their results, for one more. What is
    yielded are these results."""
    from whippet.infer.tool_loop import MAX_ROUNDS, called

    results: list[Message] = []
    for turn in range(MAX_ROUNDS + 1):
        yield results
        reply = voice.messages[-1]
        if voice.trouble is not None:
            _talk(f"not called: {_shown(voice.trouble)}")
        # A reply that was broken off may hold a call that was not finished.
        if session.toolbox is None or not reply.tool_calls or voice.stream.finish is None:
            return
        if turn == MAX_ROUNDS:
            _talk(f"not called: these are calls for the {MAX_ROUNDS + 1}th time in a row")
            return
        more = called(voice.messages[:-1], reply, session.toolbox, allow, voice.model.renderer)
        voice.messages[-1:] = more
        results = [message for message in more if message.role == "tool"]
        for result in results:
            _talk(f"{result.name} gave {_shown(result.content)}")


def described(toolbox: Toolbox) -> str:
    """The tools as the model is told of them, a line each."""
    lines = []
    for tool in toolbox.schemas:
        function = tool["function"]
        arguments = ", ".join(function["parameters"].get("properties", {}))
        lines.append(_shown(f"  {function['name']}({arguments}): {function.get('description', '')}"))
    return "\n".join(lines)


def _shown(text: str) -> str:
    """As much of a text as fits, and nothing in it that a terminal would obey."""
    flat = visible(text).replace("\n", "\\n")
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN]} ..."


def _talk(text: str) -> None:
    print(text, file=sys.stderr)
