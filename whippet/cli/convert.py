"""``whippet convert PATH --out DIR``: pytorch_model.bin, or Meta's original checkpoint, as safetensors.

Archives of torch are opened here alone, for who asks, and only if they hold nothing but tensors. Standard output tells
the folder (with ``--json`` what was written), standard error the figures.
"""

from __future__ import annotations

import argparse
import json
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="PATH", help="a folder with pytorch_model*.bin, or params.json and *.pth")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of one safetensors file, such as 2GiB (default: 5GB)"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    from whippet.errors import UsageError
    from whippet.recipe import parse_bytes
    from whippet.weights.convert import convert

    largest = parse_bytes(args.max_shard_size, "--max-shard-size")
    if largest is None:
        raise UsageError(f"--max-shard-size {args.max_shard_size}: wanted a size such as 5GB")
    written = convert(args.source, args.out, max_shard_bytes=largest)
    print(written, file=sys.stderr)
    told = {"folder": str(written.folder), "layout": written.layout, "files": written.files}
    told |= {"tensors": written.tensors, "bytes": written.nbytes}
    print(json.dumps(told) if args.json else written.folder)
    return 0
