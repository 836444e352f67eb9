"""What ``chat`` and ``generate`` share: which model, how it is held, how replies are drawn."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from whippet.errors import UsageError
from whippet.options import Base, Compute

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

if TYPE_CHECKING:
    from whippet.infer.model import Model
    from whippet.infer.stream import Stream


def configure(parser: argparse.ArgumentParser, *, temperature: str, most: str) -> None:
    """Add the arguments; the texts say what the verb does where they are not given."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder, a hub id, a run or an adapter folder")
    held = parser.add_argument_group("the model")
    held.add_argument("--adapter", metavar="DIR", help="an adapter in PEFT's layout to lay over MODEL")
    held.add_argument("--template", metavar="NAME|FILE", help="a chat template by name, or a .jinja file")
    add_template_variable(held)
    held.add_argument("--base", choices=get_args(Base), default="auto", help="how weights are held (default: auto)")
    held.add_argument("--compute", choices=get_args(Compute), default="auto", help="dtype of activations")
    held.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    held.add_argument("--revision", default="main", help="branch, tag or commit of a hub id (default: main)")
    drawn = parser.add_argument_group("the reply")
    drawn.add_argument("--max-new-tokens", type=int, metavar="N", help=f"most tokens of a reply (default: {most})")
    drawn.add_argument("--temperature", type=float, metavar="T", help=f"0 is greedy (default: {temperature})")
    drawn.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that reach P together")
    drawn.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0: from all")
    drawn.add_argument("--min-p", type=float, metavar="P", help="draw from tokens P times as likely as the likeliest")
    drawn.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1: tokens of prompt and reply become less likely"
    )
    drawn.add_argument(
        "--presence-penalty", type=float, metavar="X", help="taken from the logits of the reply's tokens"
    )
    drawn.add_argument("--frequency-penalty", type=float, metavar="X", help="the same, for each time that one came")
    drawn.add_argument("--seed", type=int, metavar="N", help="the same seed draws the same reply")
    drawn.add_argument("--stop", action="append", metavar="TEXT", help="a text that ends the reply; may be repeated")


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``Sampling`` that were given."""
    filters = ("temperature", "top_p", "top_k", "min_p")
    penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    given = {name: getattr(args, name) for name in ("max_new_tokens", *filters, *penalties, "seed", "stop")}
    return {name: value for name, value in given.items() if value is not None}


def add_template_variable(parser: argparse._ArgumentGroup) -> None:
    """The option that ``template_variables`` reads."""
    parser.add_argument(
        "--template-variable", action="append", default=[], metavar="NAME=VALUE",
        help="tell the chat template this: JSON (enable_thinking=false) or a text; may be repeated",
    )  # fmt: skip


def template_variables(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--template-variable`` told, by name."""
    told: dict[str, Any] = {}
    for given in args.template_variable:
        name, equals, value = given.partition("=")
        if not name or not equals:
            raise UsageError(f"--template-variable {given}: wanted NAME=VALUE")
        if name in told:
            raise UsageError(f"--template-variable {name}: is given twice")
        told[name] = _json_or_text(value)
    return told


def _json_or_text(value: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(value, parse_constant=refuse)
    except (ValueError, RecursionError):
        return value


def open_model(
    args: argparse.Namespace,
    path: str | None = None,
    *,
    adapter: str | None = None,
    template_variables: Mapping[str, Any] | None = None,
) -> Model:
    """Load MODEL, or ``path`` held in the same way."""
    from whippet.infer.model import load

    return load(
        args.model if path is None else path,
        args.base,
        device=args.device,
        compute=args.compute,
        adapter=adapter,
        template=args.template,
        template_variables=template_variables,
        revision=args.revision if path is None else "main",
    )


def visible(text: str) -> str:
    """``text`` as a terminal may be shown it: control characters, with which a model could steer it, as pictures."""
    return CONTROLS.sub(
        lambda match: chr(0x2400 + ord(match[0])) if match[0] < " " else "\N{REPLACEMENT CHARACTER}", text
    )


def facts(stream: Stream) -> dict[str, Any]:
    """What is told of a finished reply besides its text."""
    return {
        "finish": stream.finish,
        "prompt_tokens": len(stream.prompt_ids),
        "new_tokens": len(stream.ids),
        "seconds": round(stream.seconds, 3),
        "tokens_per_second": round(stream.tokens_per_second, 1),
    }
