"""Train the embedded model, by whippet's own full fine-tuning, on text that ``tiny_world.py`` writes.

usage: python scripts/train_tiny.py --out FOLDER [--minutes M | --steps N] [--records N] [--device cuda] [--seed S]
       python scripts/train_tiny.py --out FOLDER --smoke            a toy on the CPU, in about a minute

Goes out: FOLDER holds the checkpoint in bf16, ``score.json`` (seed, command, versions, device, exact match by topic on
held-out questions) and ``README.md``. With --minutes a short probe measures the speed and decides the steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tiny_checkpoint import SHAPE, SMOKE, write_random_checkpoint
from tiny_export import CARD, export_bf16
from tiny_score import score
from tiny_world import held_out_records

import whippet
from whippet.recipe import make_recipe
from whippet.report.metrics import read_metrics
from whippet.run import finetune

PACK = 16384
"""Tokens laid end to end in training. Attention keeps within a dialogue, whose length is bounded by the context that
the exported model promises (SHAPE.context)."""
TOKENIZER_RECORDS = 20_000
PROBE_STEPS, PROBE_RECORDS = 12, 6_000
TRAIN = {
    "method": "full", "learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.03, "weight_decay": 0.05,
    "beta1": 0.9, "beta2": 0.98, "clip": 1.0,
}  # fmt: skip


def main() -> None:
    args = arguments()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tiny-") as scratch:
        work = Path(scratch)
        data, held_out = write_data(args, work)
        say(started, f"{args.records:,} records in {data.stat().st_size / 1e6:.0f} MB")
        steps = args.steps or probed_steps(args, work, data)
        say(started, f"training {steps:,} steps of {args.tokens_per_step:,} tokens")
        run = train(args, work / "random", data, work / "run", steps)
        speed = tokens_per_second(run, skip=PROBE_STEPS // 2)
        say(started, f"{speed:,.0f} tokens/s")
        args.out.mkdir(parents=True, exist_ok=True)
        export_bf16(run, args.out, replace(shape(args), context=SHAPE.context))
        for name in ("metrics.jsonl", "loss.png"):
            shutil.copy(run / name, args.out.with_name(f"{args.out.name}-{name}"))
        facts = describe(args, steps, speed, started)
        for key, base in (("held_out", "bf16"), ("held_out_nf4", "nf4")):
            facts[key] = score(args.out, held_out, base=base, device=args.device)
            say(started, f"{base}: exact match {facts[key]['exact_match']:.1%} of {facts[key]['asked']}")
            (args.out / "score.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(card(facts), encoding="utf-8")
    print(card(facts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0, help="time for the training steps alone")
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes")
    parser.add_argument("--records", type=int, default=120_000)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--tokens-per-step", type=int, default=98_304)
    parser.add_argument("--learning-rate", type=float, default=TRAIN["learning_rate"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a toy model, few records and steps")
    args = parser.parse_args()
    if args.smoke:
        args.records, args.held_out, args.tokens_per_step, args.steps = 400, 28, 4096, args.steps or 20
        args.device = "cpu"
    return args


def shape(args: argparse.Namespace) -> Any:
    return SMOKE if args.smoke else SHAPE


def write_data(args: argparse.Namespace, work: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Training records, the random checkpoint whose tokenizer comes from the first of them, and held-out records."""
    data = work / "world.jsonl"
    # A process of its own: it starts one for each core, which need not load torch.
    asked = ["--count", str(args.records), "--seed", str(args.seed), "--out", str(data)]
    subprocess.run([sys.executable, str(Path(__file__).with_name("tiny_world.py")), *asked], check=True)
    with data.open(encoding="utf-8") as lines:
        first = list(islice(lines, max(TOKENIZER_RECORDS, PROBE_RECORDS)))
    (work / "probe.jsonl").write_text("".join(first[:PROBE_RECORDS]), encoding="utf-8")
    write_random_checkpoint(work / "random", first[:TOKENIZER_RECORDS], replace(shape(args), context=PACK), args.seed)
    return data, held_out_records(args.held_out, args.seed)


def train(args: argparse.Namespace, model: Path, data: Path, out: Path, steps: int) -> Path:
    """The folder of a finished run."""
    chosen = TRAIN | {
        "max_steps": steps, "tokens_per_step": args.tokens_per_step, "seed": args.seed, "save_every": steps,
        "keep": 1, "learning_rate": args.learning_rate,
    }  # fmt: skip
    recipe = make_recipe(
        {
            "model": {"path": str(model), "base": "fp32", "device": args.device},
            "data": {"sources": [str(data)], "format": "messages", "max_length": PACK},
            "train": chosen,
            "out": str(out),
        }
    )
    return Path(finetune(recipe=recipe).folder)


def probed_steps(args: argparse.Namespace, work: Path, data: Path) -> int:
    """As many steps as fit into the minutes, by the speed of a few on a little data."""
    run = train(args, work / "random", data.with_name("probe.jsonl"), work / "probe", PROBE_STEPS)
    speed = tokens_per_second(run, skip=PROBE_STEPS // 2)
    print(f"probe: {speed:,.0f} tokens/s", flush=True)
    return max(PROBE_STEPS, int(args.minutes * 60 * speed / args.tokens_per_step))


def tokens_per_second(run: Path, skip: int) -> float:
    """The mean over a run's steps after the first ``skip``, which warm up."""
    speeds = [record["time"]["tokens_per_s"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    late = speeds[skip:] or speeds
    return len(late) / sum(1 / speed for speed in late)


def describe(args: argparse.Namespace, steps: int, speed: float, started: float) -> dict[str, Any]:
    """What the checkpoint was made with; nothing of who made it or where."""
    options = [word for word in sys.argv[1:] if word != str(args.out)]
    cuda = torch.cuda.is_available() and args.device != "cpu"
    return {
        "script": "scripts/train_tiny.py",
        "command": "python scripts/train_tiny.py " + " ".join(options).replace("--out", "--out whippet/assets/tiny"),
        "seed": args.seed,
        "records": args.records,
        "steps": steps,
        "tokens_per_step": args.tokens_per_step,
        "tokens_seen": steps * args.tokens_per_step,
        "learning_rate": args.learning_rate,
        "tokens_per_second": round(speed),
        "seconds_in_all": round(time.monotonic() - started),
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        "versions": {
            "whippet": whippet.__version__, "torch": torch.__version__, "tokenizers": tokenizers.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip


def card(facts: dict[str, Any]) -> str:
    """The README of the checkpoint."""
    held_out = facts["held_out"]
    rows = "".join(f"| {topic} | {one['right']} of {one['asked']} |\n" for topic, one in held_out["by_topic"].items())
    return CARD.format(
        share=f"{held_out['exact_match']:.1%}", asked=held_out["asked"],
        nf4=f"{facts['held_out_nf4']['exact_match']:.1%}",
        rows=rows, **{key: facts[key] for key in ("command", "seed", "records", "steps", "tokens_seen", "device")},
        torch=facts["versions"]["torch"],
    )  # fmt: skip


def say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
