"""``whippet serve MODEL``: answer over HTTP as OpenAI's API does, until Ctrl-C or SIGTERM.

Only this machine can reach it unless ``--host`` says otherwise, and then a key is asked for. docs/serving.md tells the
routes, what is supported, and what to do when one machine is not enough.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from whippet.cli import asking
from whippet.errors import MissingExtra, UsageError
from whippet.options import Base, Compute

if TYPE_CHECKING:
    from whippet.serve.served import Served

DRAIN_SECONDS = 30.0
AUTO = "auto"
"""Instead of a key: make one, and print it once."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder, a hub id, a run or an adapter folder")
    held = parser.add_argument_group("the model")
    held.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=DIR",
        help="an adapter in PEFT's layout, served as the model NAME beside MODEL; may be repeated",
    )  # fmt: skip
    held.add_argument("--template", metavar="NAME|FILE", help="a chat template by name, or a .jinja file")
    asking.add_template_variable(held)
    held.add_argument("--base", choices=get_args(Base), default="auto", help="how weights are held (default: auto)")
    held.add_argument("--compute", choices=get_args(Compute), default="auto", help="dtype of activations")
    held.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    held.add_argument("--revision", default="main", help="branch, tag or commit of a hub id (default: main)")
    door = parser.add_argument_group("who may ask")
    door.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    door.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any that is free (default: 8000)")
    door.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help="a key that every request must send; 'auto' makes one and prints it; may be repeated",
    )  # fmt: skip
    door.add_argument("--api-key-file", metavar="FILE", help="the same, a key a line: command lines can be seen")
    door.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which clients call the server",
    )
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument("--max-rows", type=int, default=64, metavar="N", help="replies made at once (default: 64)")
    bounds.add_argument(
        "--max-waiting", type=int, default=256, metavar="N", help="requests that may wait; more get 429 (default: 256)"
    )


def run(args: argparse.Namespace) -> int:
    keys = _keys(args)
    adapters = dict(map(_named, args.adapter))
    if len(adapters) != len(args.adapter):
        raise UsageError("--adapter: two have the same name")
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port {args.port}: must be from 0 to 65535")
    try:
        from whippet.serve.connections import listen, make_server
        from whippet.serve.guards import check_binding
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11", "anyio"):
            raise
        raise MissingExtra(str(error.name), "serve", "whippet serve") from error
    check_binding(args.host, keys)
    with listen(args.host, args.port) as bound:  # before the model is read, which can take a while
        from whippet.serve.app import make_app
        from whippet.serve.start import serve_model

        served = serve_model(
            asking.open_model(args, template_variables=asking.template_variables(args)),
            name=_name(args.model),
            adapters=adapters,
            max_rows=args.max_rows,
            max_waiting=args.max_waiting,
        )
        app = make_app(served, bound=args.host, names=args.allow_host, keys=keys)
        bound.listen()  # whoever reads what is said next may come at once
        host, port = bound.getsockname()[:2]
        _announce(served, f"http://{f'[{host}]' if ':' in host else host}:{port}", keys, made=AUTO in args.api_key)
        make_server(app, drain=DRAIN_SECONDS).run(sockets=[bound])
    return 0


def _announce(served: Served, address: str, keys: list[str], *, made: bool) -> None:
    """Where, what and how; a key only if it was made here, for it is told nowhere else."""
    print(f"whippet serves {', '.join(served.names)} ({served.model.about}) at {address}/v1", file=sys.stderr)
    if made:
        print(f"key: {keys[0]}", file=sys.stderr)
    asked = {"model": next(iter(served.names)), "messages": [{"role": "user", "content": "Hello"}]}
    head = " -H 'authorization: Bearer KEY'" if keys else ""
    print(
        f"curl {address}/v1/chat/completions{head} -H 'content-type: application/json' -d '{json.dumps(asked)}'",
        file=sys.stderr,
        flush=True,
    )


def _keys(args: argparse.Namespace) -> list[str]:
    import secrets

    given = [key for key in args.api_key if key != AUTO]
    made = [secrets.token_urlsafe(32)] if AUTO in args.api_key else []
    if args.api_key_file is None:
        return made + given
    try:
        lines = Path(args.api_key_file).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {args.api_key_file}: {getattr(error, 'strerror', None) or error}") from error
    if not lines:
        raise UsageError(f"--api-key-file {args.api_key_file} holds no key")
    return made + given + lines


def _named(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    if not name or not equals or not path:
        raise UsageError(f"--adapter {given}: wanted NAME=DIR")
    return name, path


def _name(model: str) -> str:
    """The id of the model: a hub id as it is, of a folder its last part."""
    return Path(model).resolve().name if Path(model).exists() else model
