"""The kernels of one training step by their share of its time; and steps under limits that no planner would choose.

usage: python benchmarks/step.py 8b [--docs 2 --length 2048] [--recompute 32 --park 32 --chunk-rows 256] [--result FILE]

``whippet bench`` gives the figures; this shows what they are made of. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from whippet.bench.settings import SHAPES, Setting
from whippet.bench.steps import RATE, make_learner, measure, random_step
from whippet.bench.table import circumstances
from whippet.train.limits import Limits

ROWS = 32


def main() -> None:
    args = arguments()
    device = torch.device("cuda")
    setting = Setting(args.shape, args.docs, args.length, base=args.base, optimizer=args.optimizer, rank=args.rank)
    tokens = args.micro_tokens or setting.tokens
    limits = Limits(tokens, args.recompute, args.chunk_rows, args.park, args.halves, args.tile, args.entire)
    measured = measure(setting, device, steps=args.steps, warmup=4, limits=limits)
    print(measured)
    if args.result:
        args.result.parent.mkdir(parents=True, exist_ok=True)
        about = {"command": "python " + " ".join(sys.argv), "commit": args.commit} | circumstances(device)
        with args.result.open("a", encoding="utf-8") as file:
            file.write(json.dumps(about | measured.as_dict()) + "\n")
    if args.profile:
        profile(setting, device, limits)


def profile(setting: Setting, device: torch.device, limits: Limits) -> None:
    """The kernels of one step, those that take longest first."""
    learner, work = make_learner(setting, device, limits)
    for number in range(3):
        learner.learn(random_step(setting, work.config.vocab_size, number), RATE, number)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        learner.learn(random_step(setting, work.config.vocab_size, 9), RATE, 9)
        torch.cuda.synchronize()
    kernels = sorted(seen.key_averages(), key=lambda one: -one.device_time_total)
    total = sum(one.device_time_total for one in kernels)
    print(f"kernels take {total / 1e3:.1f} ms")
    for one in kernels[:ROWS]:
        took = one.device_time_total
        print(f"{took / 1e3:8.2f} ms {100 * took / total:5.1f} % {one.count:5d}  {one.key[:90]}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--base", default="nf4", choices=("nf4", "fp8", "bf16"))
    parser.add_argument("--docs", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--recompute", type=int, default=0)
    parser.add_argument("--park", type=int, default=0)
    parser.add_argument("--halves", type=int, default=0)
    parser.add_argument("--tile", type=int, default=0)
    parser.add_argument("--entire", type=int, default=0)
    parser.add_argument("--micro-tokens", type=int, default=0)
    parser.add_argument("--chunk-rows", type=int, default=1024)
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "adamw8bit"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--commit", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
