"""``whippet bench``: how fast this machine trains, measured on random weights of real shapes.

Figures go to standard output as each is measured; with ``--json`` as one object at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from whippet.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="only these shapes: 8b, 3b, 1b, tiny")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps that are timed (default: 10)")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    parser.add_argument("--out", metavar="FILE", help="also write the figures there, as JSON")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    if args.steps < 1:
        raise UsageError(f"--steps {args.steps}: must be 1 or more")
    from whippet import bench
    from whippet.weights.load import choose_device

    if unknown := [shape for shape in args.shapes if shape not in bench.SHAPES]:
        raise UsageError(f"{unknown[0]}: unknown shape; known: {', '.join(bench.SHAPES)}")
    device = choose_device(args.device)
    settings = bench.SETTINGS if device.type == "cuda" else bench.CPU_SETTINGS
    if args.shapes:
        every = (*bench.SETTINGS, *bench.CPU_SETTINGS)
        settings = tuple(setting for setting in every if setting.shape in args.shapes)
    figures = bench.circumstances(device) | {"command": " ".join(["whippet", "bench", *_asked(args)]), "results": []}
    for measured in bench.bench(settings, device, steps=args.steps):
        figures["results"].append(measured.as_dict())
        print(measured, file=sys.stderr if args.json else sys.stdout, flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(figures))
    return 0


def _asked(args: argparse.Namespace) -> list[str]:
    return [*args.shapes, "--steps", str(args.steps), "--device", args.device]
