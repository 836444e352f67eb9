"""``whippet finetune MODEL DATA...`` or ``whippet finetune RECIPE.toml``: from data to a trained model.

The plan is printed first, then training is shown live, both on standard error; standard output names the run's folder
(with ``--json``: a summary). Running the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json

from whippet.cli import training


def configure(parser: argparse.ArgumentParser) -> None:
    training.configure(parser)


def run(args: argparse.Namespace) -> int:
    recipe = training.recipe_of(args)
    from whippet.run import finetune

    run = finetune(recipe=recipe)
    print(json.dumps(run.summary()) if args.json else run.folder)
    return 0
