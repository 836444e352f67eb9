"""``whippet models``: which models whippet knows, and the memory of a GPU that each of them needs.

Without arguments published checkpoints by family; with folders, those checkpoints. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whippet.model.config import ModelConfig

NAME = 34
HEAD = f"{'':{NAME}} {'size':>6} {'context':>7} {'QLoRA':>6} {'LoRA':>5} {'full':>5} {'chat':>11}"
FOOT = """
GiB of a GPU at least: for training on examples of 2,048 tokens (activations
computed again and parked in the host's memory), and for conversations of 4,096
tokens in 4 | 16 bit. `whippet plan` tells it for a run. Families:"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="*", metavar="FOLDER", help="checkpoints here, in place of published ones")
    parser.add_argument("--json", action="store_true", help="print the table as JSON, in bytes")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from whippet.model.families import FAMILIES
    from whippet.model.known import ROWS, known
    from whippet.model.size import parameters
    from whippet.train.needs import needs
    from whippet.weights.load import read_config

    found = {path: read_config(Path(path))[0] for path in args.path} or {name: known(name) for name in ROWS}
    if args.json:
        rows = [
            {"model": name, "family": config.family, "parameters": parameters(config), "context": config.context}
            | {"bytes": asdict(needs(config))}
            for name, config in found.items()
        ]
        print(json.dumps({"families": sorted(FAMILIES), "models": rows}))
        return 0
    print(HEAD)
    for name, config in found.items():
        print(_row(name, config))
    print(f"{FOOT}\n{', '.join(sorted(FAMILIES))}.")
    return 0


def _row(name: str, config: ModelConfig) -> str:
    from whippet.model.size import parameters
    from whippet.report.figures import count
    from whippet.train.needs import needs

    wanted = needs(config)
    shown = name if len(name) <= NAME else f"…{name[1 - NAME :]}"
    chat = f"{gib(wanted.chat_4bit)} |{gib(wanted.chat_16bit):>5}"
    return (
        f"{shown:{NAME}} {count(parameters(config)):>6} {config.context:>7,} {gib(wanted.qlora):>6} "
        f"{gib(wanted.lora):>5} {gib(wanted.full):>5} {chat:>11}"
    )


def gib(number: int) -> str:
    """Two digits at least."""
    amount = number / 2**30
    return f"{amount:.1f}" if amount < 99.95 else f"{amount:,.0f}"
