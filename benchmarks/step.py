"""Time a QLoRA or LoRA training step of a real shape with random weights, as the loop runs it; one JSON line a setting.

usage: python benchmarks/step.py 8b --base nf4 --docs 2 --length 2048 [--recompute 32] [--budget 6.8GiB] [--profile]

SHAPE is 1b, 3b or 8b (``random_checkpoint.py``). Every token is supervised and documents have one length, as in the
peers' benchmark. Prints the median step of --steps after --warmup, tokens/s and the peak of allocated memory. With
--budget the planner chooses what is recomputed; --profile adds the kernels of one step by their share of the time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_checkpoint import SHAPES, SHARED
from torch import nn

import whippet
from whippet import lora
from whippet.data.batches import DataPosition, Step, make_batch
from whippet.data.weigh import Weighed
from whippet.kernels import triton_jit
from whippet.kernels.attention import backend
from whippet.kernels.nf4 import join_rows, quantize_nf4
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.model.families import config_from_hf
from whippet.options import LoraOptions, TrainOptions
from whippet.recipe import parse_bytes
from whippet.train.learner import Learner, Limits, quiet_collector
from whippet.train.memory import Workload, choose_limits, peak_bytes
from whippet.train.objectives import sft
from whippet.train.optim import make_optimizer, trained_parameters

GIB = 2**30


def shape(name: str) -> ModelConfig:
    return config_from_hf(SHARED | SHAPES[name], where=name)


def random_decoder(config: ModelConfig, base: str, device: str, *, seed: int = 0) -> Decoder:
    """A decoder whose weights are drawn on the device, nf4 or bf16; nothing is read from disk."""
    draw = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw, device=device, dtype=torch.float32).mul_(0.02).bfloat16()

    decoder = Decoder(config, compute_dtype=torch.bfloat16, device="meta", dtype=torch.bfloat16)
    for name, parameter in list(decoder.named_parameters()):
        path, _, leaf = name.rpartition(".")
        module = decoder.get_submodule(path)
        if name.endswith("norm") or "norm" in leaf:
            value = torch.ones(parameter.shape, device=device, dtype=torch.bfloat16)
        elif base == "nf4" and path.startswith("layers."):
            sizes = [rows.stop - rows.start for rows in module.parts.values()]
            parts = [quantize_nf4(normal(size, module.in_size)) for size in sizes]
            module.set_nf4(parts[0] if len(parts) == 1 else join_rows(parts))
            continue
        else:
            value = normal(*parameter.shape)
        setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    return decoder


def random_step(config: ModelConfig, docs: int, length: int, seed: int) -> Step:
    draw = np.random.default_rng(seed)
    weights = np.ones(length, dtype=np.float32)
    weights[0] = 0.0
    examples = [Weighed(draw.integers(0, 128000, length, dtype=np.int32), weights) for _ in range(docs)]
    batch = make_batch(examples)
    return Step((batch,), batch.weight_sum, docs * length, docs, DataPosition())


def main() -> None:
    args = arguments()
    config = shape(args.shape)
    started = time.perf_counter()
    decoder = random_decoder(config, args.base, args.device)
    options = LoraOptions(r=args.rank)
    lora.attach(decoder, options, 0)
    parameters = trained_parameters(decoder, "lora")
    train = TrainOptions(learning_rate=2e-4, optimizer=args.optimizer)
    tokens = args.docs * args.length
    work = Workload(config, args.base, 2, options, args.optimizer, args.device, args.length, tokens, 1.0)
    if args.budget:
        limits = choose_limits(work, parse_bytes(args.budget, "--budget") or 0)
    else:
        limits = Limits(args.micro_tokens or tokens, args.recompute, args.chunk_rows, args.park)
    learner = Learner(decoder, parameters, make_optimizer(parameters, train), sft.loss, train, limits, print)
    made = time.perf_counter() - started
    times: list[float] = []
    with quiet_collector():
        for number in range(args.warmup + args.steps):
            step = random_step(config, args.docs, args.length, number)
            torch.cuda.synchronize()
            if number == args.warmup:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            learnt = learner.learn(step, 2e-4, number)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    usual = statistics.median(times[args.warmup :])
    result: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv), "commit": args.commit, "date": datetime.date.today().isoformat(),
        "versions": {
            "whippet": whippet.__version__, "torch": torch.__version__, "python": platform.python_version(),
            "triton": getattr(triton_jit.triton, "__version__", ""),
        },
        "attention": backend(decoder.device, decoder.compute_dtype, config.head_dim),
        "who": "whippet", "shape": args.shape, "base": args.base, "docs": args.docs, "length": args.length,
        "rank": args.rank, "limits": learner.limits.as_dict(), "tok_s": round(tokens / usual),
        "step_s": round(usual, 4), "min_s": round(min(times[args.warmup :]), 4),
        "max_s": round(max(times[args.warmup :]), 4), "first_step_s": round(times[0], 2), "made_s": round(made, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "planned_gib": round(peak_bytes(work, learner.limits) / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2), "loss": round(learnt.loss, 4),
        "device": torch.cuda.get_device_name(),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    if args.result:
        args.result.parent.mkdir(parents=True, exist_ok=True)
        with args.result.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    if args.profile:
        profile(learner, random_step(config, args.docs, args.length, 999))


def profile(learner: Learner, step: Step) -> None:
    """The kernels of one step, those that take longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        learner.learn(step, 2e-4, 999)
        torch.cuda.synchronize()
    kernels = sorted(seen.key_averages(), key=lambda one: -one.device_time_total)
    total = sum(one.device_time_total for one in kernels)
    print(f"kernels take {total / 1e3:.1f} ms")
    for one in kernels[:32]:
        took = one.device_time_total
        print(f"{took / 1e3:8.2f} ms {100 * took / total:5.1f} % {one.count:5d}  {one.key[:90]}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--base", default="nf4", choices=("nf4", "bf16"))
    parser.add_argument("--docs", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--recompute", type=int, default=0)
    parser.add_argument("--park", type=int, default=0)
    parser.add_argument("--micro-tokens", type=int, default=0)
    parser.add_argument("--chunk-rows", type=int, default=1024)
    parser.add_argument("--budget", default="")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--commit", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
