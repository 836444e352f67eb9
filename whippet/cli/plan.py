"""``whippet plan``: what ``finetune`` with the same arguments would take, without training.

Nothing is written to disk.
"""

from __future__ import annotations

import argparse
import json

from whippet.cli import training


def configure(parser: argparse.ArgumentParser) -> None:
    training.configure(parser)


def run(args: argparse.Namespace) -> int:
    recipe = training.recipe_of(args)
    from whippet.run import plan

    report = plan(recipe)
    print(json.dumps(report.as_dict()) if args.json else report)
    return 0
