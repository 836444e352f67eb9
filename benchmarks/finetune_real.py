"""Fine-tune a checkpoint on a real file through the ordinary command line, and keep the figures.

usage: python benchmarks/finetune_real.py MODEL DATA --run DIR --result FILE.json [--commit HASH] [--set KEY=VALUE ...]

Runs ``whippet finetune`` with the given keys, reads the run's metrics.jsonl, and writes one JSON object: the command,
commit, versions, device, date, loss at the start and the end, median tokens/s after warm-up, peak memory, load time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import whippet

WARMUP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--commit", default="")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    command = ["-m", "whippet", "finetune", args.model, args.data, "--out", str(args.run)]
    for pair in args.set:
        command += ["--set", pair]
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True)
    wall = time.perf_counter() - start
    records = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "loss" in r]
    timed = steps[WARMUP:]
    losses = [r["loss"] for r in steps]
    result = {
        "command": "python " + " ".join(command),
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "versions": {"whippet": whippet.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "steps": len(steps),
        "tokens_per_step": statistics.median(r["tokens"] for r in steps),
        "loss_first_5": round(statistics.mean(losses[:5]), 4),
        "loss_last_5": round(statistics.mean(losses[-5:]), 4),
        "tokens_per_s_median": round(statistics.median(r["time"]["tokens_per_s"] for r in timed)),
        "step_s_median": round(statistics.median(r["time"]["step_s"] for r in timed), 4),
        "peak_gib": round(max(r["time"].get("peak_bytes", 0) for r in steps) / 2**30, 2),
        "wall_s": round(wall, 1),
        "losses": losses,
    }
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "losses"}))


if __name__ == "__main__":
    main()
