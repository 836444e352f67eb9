"""What ``finetune`` and ``plan`` share: MODEL DATA... or RECIPE.toml, and ``--set key=value``, to a Recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from whippet.errors import UsageError
from whippet.options import Recipe
from whippet.recipe import make_recipe, read_recipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a run."""
    parser.add_argument("model", metavar="MODEL|RECIPE.toml", help="a checkpoint folder, a hub id, or a recipe")
    parser.add_argument("data", nargs="*", metavar="DATA", help="files, folders or hub ids with training records")
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/<model>-<data>)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set a recipe key, such as lora.r=32"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the arguments describe, checked."""
    overrides = dict(_pair(text) for text in args.set)
    if args.out:
        overrides["out"] = args.out
    if args.model.endswith(".toml"):
        if args.data:
            raise UsageError(f"{args.model} is a recipe and names its data; use --set data.sources=... to change it")
        return read_recipe(Path(args.model), overrides)
    if not args.data and "data.sources" not in overrides:
        raise UsageError(f"no data: whippet {args.verb} {args.model} DATA..., or give a recipe ending in .toml")
    data = {"sources": args.data} if args.data else {}
    return make_recipe({"model": {"path": args.model}, "data": data}, overrides, where="command line")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: must be KEY=VALUE, such as --set lora.r=32")
    return key.strip(), value.strip()
