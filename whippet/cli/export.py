"""``whippet export RUN_OR_MODEL --to FORMAT --out DIR``: a run or model as files for other programs.

What was written is read back and compared; standard error tells the figures, standard output the folder (with
``--json``: the content of verify.json and the folder's path). Exit code 4 if the files answer differently.
"""

from __future__ import annotations

import argparse
import json
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN_OR_MODEL", help="a run's folder, an adapter, a checkpoint or a hub id")
    parser.add_argument(
        "--to",
        default="hf",
        metavar="FORMAT",
        help="hf: a checkpoint, the adapter merged (default); adapter: PEFT's; gguf:TYPE: a file for llama.cpp, of "
        "type f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_k_s or q4_0",
    )
    parser.add_argument("--out", metavar="DIR", help="the folder to write (default: RUN/FORMAT, as RUN/gguf-q8_0)")
    parser.add_argument("--dtype", default="bf16", metavar="DTYPE", help="of hf: bf16 (default), fp16 or fp32")
    parser.add_argument(
        "--merge-onto",
        default="trained",
        metavar="BASE",
        help="trained: the weights that the adapter was trained over (default); 16bit: the unquantised ones",
    )
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    from whippet.export import export

    report = export(args.source, args.to, args.out, dtype=args.dtype, merge_onto=args.merge_onto, device=args.device)
    print(report, file=sys.stderr)
    print(json.dumps(report.as_dict() | {"folder": str(report.out)}) if args.json else report.out)
    return 0
