"""``whippet VERB ...``: a table of verbs. Only the verb that is asked for is imported.

Each verb's module has ``configure(parser)`` and ``run(args) -> int``. Standard output carries data, standard error
talk. Errors that a person can mend are one line and the exit code of their class (errors.py).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import whippet
from whippet.errors import UsageError, WhippetError
from whippet.train.signals import Terminated, terminable

VERBS = {
    "demo": "watch a small model learn, here and now",
    "finetune": "train a model on your data",
    "plan": "say what training would take, without training",
    "models": "say which models are known, and the memory that they need",
    "data": "look at data as the model will see it",
    "chat": "talk to a model or a run",
    "generate": "continue a text or answer messages",
    "serve": "answer over HTTP, as OpenAI's API does",
    "export": "write a run or model for other programs",
    "convert": "turn pytorch_model.bin, or Meta's original files, into safetensors",
    "bench": "measure how fast this machine trains",
}


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors go the way of all others: one line, and JSON where that was asked for."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UsageError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    _wait_without_spinning()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Looked for by hand: an error of the arguments must know it too. Like argparse it may be cut short.
    as_json = any(len(word) > 2 and "--json".startswith(word) for word in words)
    try:
        with terminable():
            return _run(words)
    except WhippetError as error:
        _report(type(error).__name__, str(error), error.exit_code, as_json)
        return error.exit_code
    except (KeyboardInterrupt, Terminated) as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        _report("Stopped", "stopped", code, as_json)
        return code
    except BrokenPipeError:
        # The reader (head, less) has gone: point stdout at nothing, so that Python's own flush at exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _wait_without_spinning() -> None:
    """Let torch's threads sleep where they wait for each other, unless somebody has said how they should wait.

    By default they spin for milliseconds. On a machine that does something else too this takes the core from the very
    thread that is waited for, and small steps take 2 to 7 times as long. On an idle one sleeping at once costs 20 % of
    them, so GNU's OpenMP may spin for some microseconds first: 5 %. It reads this when torch is loaded, so that must
    not have happened yet.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _run(words: Sequence[str]) -> int:
    parser = _parser(next((word for word in words if not word.startswith("-")), None))
    args = parser.parse_args(words)
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 2
    return int(importlib.import_module(f"whippet.cli.{args.verb}").run(args))


def _parser(verb: str | None) -> argparse.ArgumentParser:
    parser = Parser(
        prog="whippet",
        description="Fine-tune, run and ship open language models on the machine that you have.",
        epilog="Start with: whippet demo",
    )
    parser.add_argument("--version", action="version", version=f"whippet {whippet.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, purpose in VERBS.items():
        sub = verbs.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        if name == verb:
            importlib.import_module(f"whippet.cli.{name}").configure(sub)
    return parser


def _report(kind: str, message: str, code: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message, "exit": code}}))
    print(f"whippet: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
