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

import whippet
from whippet.errors import WhippetError

VERBS = {
    "demo": "watch a small model learn, here and now",
    "finetune": "train a model on your data",
    "plan": "say what training would take, without training",
    "data": "look at data as the model will see it",
    "chat": "talk to a model or a run",
    "generate": "continue a text or answer messages",
    "export": "write a run or model for other programs",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((word for word in arguments if not word.startswith("-")), None)
    parser = _parser(verb)
    args = parser.parse_args(arguments)
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 2
    module = importlib.import_module(f"whippet.cli.{args.verb}")
    try:
        return int(module.run(args))
    except WhippetError as error:
        _report(error, getattr(args, "json", False))
        return error.exit_code
    except KeyboardInterrupt:
        print("whippet: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: point stdout at nothing, so that Python's own flush at exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser(verb: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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


def _report(error: WhippetError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": {"type": type(error).__name__, "message": str(error), "exit": error.exit_code}}))
    print(f"whippet: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
