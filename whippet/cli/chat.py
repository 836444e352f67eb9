"""``whippet chat MODEL_OR_RUN``: talk to a model; with ``--compare`` to the base and the tuned one side by side.

On a terminal it is a conversation with a few commands (``/help``), whose replies are shown as markdown, or with
``--plain`` as they are. From a pipe every line is a message, and replies are lines on standard output; ``--json`` makes
one object of each. ``--prompt`` asks once. ``--tools FILE.py`` lets the model call functions (``chat_tools.py``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from whippet.cli import asking, chat_tools
from whippet.errors import UsageError, WhippetError

if TYPE_CHECKING:
    from rich.console import Console

    from whippet.cli.chat_history import History
    from whippet.cli.chat_markdown import Rendered
    from whippet.cli.chat_screen import SideBySide, Wrapped
    from whippet.cli.chat_session import Session, Voice
    from whippet.infer.tool_loop import Allow

HELP = """\
  /system TEXT   begin anew with this system message     /reset   begin anew
  /regenerate    answer the last message again           /exit    leave (or Ctrl-D)
  /save FILE     write the conversation as JSON
A line that ends in \\ goes on in the next one. Ctrl-C stops a reply."""
HELP_TOOLS = "  /tools         tell the functions that the model may call"
COMMANDS = ("/exit", "/help", "/quit", "/regenerate", "/reset", "/save", "/system")


def configure(parser: argparse.ArgumentParser) -> None:
    asking.configure(parser, temperature="the checkpoint's, or 0.7", most="2048")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--prompt", metavar="TEXT", help="ask once and leave")
    parser.add_argument(
        "--compare", nargs="?", const="", metavar="BASE", help="show BASE (by default MODEL's own base) beside MODEL"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a reply; needs --prompt or a pipe")
    parser.add_argument("--plain", action="store_true", help="show a reply's very words on a terminal, not as markdown")
    parser.add_argument(
        "--no-history", action="store_true", help="do not keep what is typed on a terminal for the next talk"
    )
    chat_tools.configure(parser)


def run(args: argparse.Namespace) -> int:
    talking = args.prompt is None and sys.stdin.isatty()
    if args.json and talking:
        raise UsageError("--json needs --prompt TEXT or messages from a pipe")
    from whippet.cli.chat_session import Session

    toolbox, allow = chat_tools.load(args), chat_tools.Permission(always=args.yes)
    session = Session(_voices(args), asking.sampling_of(args), args.system, toolbox)
    if talking:
        return _converse(session, allow, args)
    for line in [args.prompt] if args.prompt is not None else _lines(session):
        _answer_in_lines(session, line, allow, as_json=args.json)
    return 0


def _voices(args: argparse.Namespace) -> list[Voice]:
    from whippet.cli.chat_session import Voice

    told = asking.template_variables(args)
    model = asking.open_model(args, adapter=args.adapter, template_variables=told)
    if args.compare is None:
        return [Voice("", model)]
    if args.compare:
        base = asking.open_model(args, args.compare, template_variables=told)
        return [Voice(args.compare, base), Voice(args.model, model)]
    if not model.has_adapter:
        raise UsageError(f"{args.model} has no adapter to compare with its base; name another model: --compare BASE")
    return [Voice("base", model, bare=True), Voice("tuned", model)]


def _lines(session: Session) -> Iterator[str]:
    """Messages from the pipe; the commands of a terminal work there too."""
    for raw in sys.stdin:
        line = raw.rstrip("\r\n")
        if line.split(" ")[0] in ("/exit", "/quit"):
            return
        if line.split(" ")[0] in _commands(session):
            again = _command(session, line)
            if again is not None:
                yield again
        elif line.strip():
            yield line


def _answer_in_lines(session: Session, line: str, allow: Allow, *, as_json: bool) -> None:
    """Replies as they stream; of several voices each begins with its label."""
    session.say(line)
    for voice in session.voices:
        for results in chat_tools.rounds(session, voice, allow):
            if as_json:
                for result in results:
                    print(json.dumps({"message": result.as_openai()}, ensure_ascii=False), flush=True)
            _answer_in_line(session, voice, as_json=as_json)


def _answer_in_line(session: Session, voice: Voice, *, as_json: bool) -> None:
    if not as_json and voice.label:
        print(f"{voice.label}: ", end="", flush=True)
    on_terminal = sys.stdout.isatty()
    for piece in session.answer(voice):
        if not as_json:
            print(asking.visible(piece) if on_terminal else piece, end="", flush=True)
    if as_json:
        who = {"voice": voice.label} if voice.label else {}
        reply = {**who, "message": voice.messages[-1].as_openai(), **asking.facts(voice.stream)}
        print(json.dumps(reply, ensure_ascii=False), flush=True)
    else:
        print(flush=True)


def _converse(session: Session, allow: Allow, args: argparse.Namespace) -> int:
    """The conversation on a terminal, until /exit or the end of input."""
    from rich.console import Console

    from whippet.cli.chat_history import History, history_file

    console = Console(highlight=False, markup=False)
    console.print(f"{args.model}: {session.voices[-1].model.about}", style="dim")
    console.print("/help tells the commands, /exit leaves", style="dim")
    history = History(None if args.no_history else history_file())
    while True:
        try:
            line = _read_message(history)
        except (EOFError, KeyboardInterrupt):
            console.print()
            return 0
        word = line.split(" ")[0]
        if word in ("/exit", "/quit"):
            return 0
        try:
            if word.startswith("/"):
                again = _command(session, line)
                if again is None:
                    continue
                line = again
            if line.strip():
                _answer_on_screen(session, line, console, allow, plain=args.plain)
        except WhippetError as error:
            console.print(str(error), style="yellow")


def _answer_on_screen(session: Session, line: str, console: Console, allow: Allow, *, plain: bool) -> None:
    """The replies as they grow; Ctrl-C ends the one that is growing, and it is kept as far as it came."""
    session.say(line)
    with suppress(KeyboardInterrupt):
        for _ in chat_tools.rounds(session, session.voices[0], allow):
            with _screen(session, console, plain=plain) as screen:
                for voice in session.voices:
                    with closing(session.answer(voice)) as pieces, suppress(KeyboardInterrupt):
                        for piece in pieces:
                            screen.push(piece)
                    screen.finish(voice.stream)


def _screen(session: Session, console: Console, *, plain: bool) -> SideBySide | Wrapped | Rendered:
    """What shows replies. A comparison is one of very words; and markdown needs a cursor that can go back."""
    from whippet.cli.chat_screen import SideBySide, Wrapped

    if len(session.voices) > 1:
        return SideBySide(console, [voice.label for voice in session.voices])
    if plain or not console.is_terminal or console.is_dumb_terminal:
        return Wrapped(console)
    from whippet.cli.chat_markdown import Rendered

    return Rendered(console)


def _commands(session: Session) -> tuple[str, ...]:
    return COMMANDS if session.toolbox is None else (*COMMANDS, "/tools")


def _command(session: Session, line: str) -> str | None:
    """Do what a command says; return the message to answer again for /regenerate."""
    word, _, rest = line.partition(" ")
    if word == "/help":
        _talk(HELP if session.toolbox is None else f"{HELP_TOOLS}\n{HELP}")
    elif word == "/tools" and session.toolbox is not None:
        _talk(chat_tools.described(session.toolbox))
    elif word == "/reset":
        session.reset()
        _talk("the conversation begins anew")
    elif word == "/system":
        session.reset(rest.strip())
        _talk("the conversation begins anew, with this system message" if rest.strip() else "no system message now")
    elif word == "/save":
        _save(session, rest.strip())
    elif word == "/regenerate":
        return session.take_back()
    else:
        raise UsageError(f"unknown command {word}; known: {', '.join(_commands(session))}")
    return None


def _save(session: Session, name: str) -> None:
    if not name:
        raise UsageError("/save needs a file name: /save talk.json")
    path = Path(name).expanduser()
    messages = [message.as_openai() for message in session.voices[-1].messages]
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump({"messages": messages}, file, indent=2, ensure_ascii=False)
            file.write("\n")
    except FileExistsError:
        raise UsageError(f"{path} exists already; choose another name") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    _talk(f"{len(messages)} messages in {path}")


def _read_message(history: History) -> str:
    """A line, and those that follow while they end in a backslash."""
    lines = [input("> ")]
    history.add(lines[0])
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("  "))
        history.add(lines[-1])
    return "\n".join(lines)


def _talk(text: str) -> None:
    print(text, file=sys.stderr)
