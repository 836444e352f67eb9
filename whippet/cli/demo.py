"""``whippet demo``: watch a small model learn, here and now.

The story is told on standard output (with ``--json`` on standard error, and a summary on standard output).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from whippet.errors import WhippetError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/demo, or runs/demo-2 and so on)")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter's first weights and the order of records")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    from whippet.demo import demo, free_folder

    out = Path(args.out) if args.out else free_folder(Path("runs/demo"))
    result = demo(out, seed=args.seed, stream=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result.as_dict()))
    if not result.passed:
        raise WhippetError(result.complaint)
    return 0
