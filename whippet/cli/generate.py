"""``whippet generate MODEL --prompt TEXT | --messages FILE``: one continuation or one reply, on standard output.

``--prompt`` is continued as it stands, without the chat template; exactly the continuation is written, and a newline.
``--messages`` (a JSON list, or an object with ``messages`` and ``tools``; ``-`` is standard input) is answered through
the template. With ``--json`` one object tells text, reason of the end, counts and speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from whippet.cli import asking
from whippet.errors import DataError, UsageError

if TYPE_CHECKING:
    from whippet.chat.messages import Conversation
    from whippet.infer.model import Model
    from whippet.infer.stream import Stream


def configure(parser: argparse.ArgumentParser) -> None:
    asking.configure(parser, temperature="0", most="512")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="a text to continue")
    asked.add_argument("--messages", metavar="FILE", help="a JSON file of messages to answer; - is standard input")
    parser.add_argument("--system", metavar="TEXT", help="a system message before those of FILE")
    parser.add_argument("--json", action="store_true", help="print the reply with its figures as JSON")


def run(args: argparse.Namespace) -> int:
    conversation = None if args.messages is None else _read(args.messages, args.system)
    told = asking.template_variables(args)
    if conversation is None:
        options = {"--system": args.system, "--template": args.template, "--template-variable": told or None}
        for option, given in options.items():
            if given is not None:
                raise UsageError(f"{option} needs --messages: --prompt is continued without the chat template")
    model = asking.open_model(args, adapter=args.adapter, template_variables=told)
    stream = model.stream(args.prompt if conversation is None else conversation, **asking.sampling_of(args))
    if args.json:
        print(json.dumps(_described(model, stream.drain(), conversation), ensure_ascii=False))
        return 0
    on_terminal = sys.stdout.isatty()
    for piece in stream:
        print(asking.visible(piece) if on_terminal else piece, end="", flush=True)
    print(flush=True)
    return 0


def _described(model: Model, stream: Stream, answered: Conversation | None) -> dict[str, object]:
    message = {} if answered is None else {"message": model.message(stream, answered.tools).as_openai()}
    return {"text": stream.text, **message, **asking.facts(stream)}


def _read(path: str, system: str | None) -> Conversation:
    from whippet.chat.messages import Message
    from whippet.infer.prompts import read_conversation

    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        conversation = read_conversation(path, raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    if system is None:
        return conversation
    if conversation.messages[0].role in ("system", "developer"):
        raise UsageError(f"{path} begins with a {conversation.messages[0].role} message; leave out --system")
    return replace(conversation, messages=(Message("system", system), *conversation.messages))
