"""Greedy decoding, measured: time to the first token, and tokens a second from there on.

usage: python benchmarks/decode.py CHECKPOINT [--base nf4] [--batch 1,8,32] [--prompt 512] [--new 128] [--device cuda]
       [--check] [--profile] [--out FILE.json]

Prompts are random tokens. A batch is answered three times by one engine that keeps nothing between (the first time
compiles and records), and the median is told. --check compares each row's tokens with those that it gets alone.
--profile tells the kernels of some steps, by time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from whippet.bench.table import circumstances
from whippet.infer.batching import Batcher
from whippet.infer.requests import Request
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder
from whippet.weights.load import choose_device, load_decoder

TIMES = 4


def answered(batcher: Batcher, prompts: list[list[int]], new: int) -> tuple[float, float, list[list[int]]]:
    """Seconds to the first token of all, tokens a second afterwards, and the replies."""
    begin = time.perf_counter()
    numbers = [batcher.add(Request(tuple(prompt), Sampling(new), frozenset())) for prompt in prompts]
    replies: dict[int, list[int]] = {number: [] for number in numbers}
    first = 0.0
    while batcher.busy:
        for event in batcher.step():
            if event.drawn is not None:
                replies[event.number].append(event.drawn.id)
        if not first and all(replies.values()):
            first = time.perf_counter()
    ended = time.perf_counter()
    count = sum(len(reply) for reply in replies.values()) - len(prompts)
    return first - begin, count / (ended - first), [replies[number] for number in numbers]


def measured(decoder: Decoder, batch: int, prompt: int, new: int, *, check: bool) -> dict[str, object]:
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(0, decoder.config.vocab_size, (batch, prompt), generator=generator).tolist()
    batcher = Batcher(decoder, max_rows=batch, cache_tokens=batch * (prompt + new + 64), reuse=False)
    runs = [answered(batcher, prompts, new) for _ in range(TIMES)][1:]
    found: dict[str, object] = {
        "batch": batch,
        "first_token_ms": round(1e3 * statistics.median(run[0] for run in runs), 1),
        "tokens_per_s": round(statistics.median(run[1] for run in runs), 1),
    }
    if check and batch > 1:
        alone = Batcher(decoder, max_rows=1, cache_tokens=prompt + new + 64, reuse=False)
        same = sum(answered(alone, [one], new)[2][0] == reply for one, reply in zip(prompts, runs[0][2], strict=True))
        found["rows_equal_alone"] = same
    return found


def profile(decoder: Decoder, prompt: int) -> None:
    batcher = Batcher(decoder, max_rows=1, cache_tokens=prompt + 256, reuse=False)
    batcher.add(Request(tuple(range(prompt)), Sampling(64), frozenset()))
    for _ in range(12):
        batcher.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(10):
            batcher.step()
        torch.cuda.synchronize()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    print(f"{total / 1e4:.3f} ms of kernels a step")
    for row in rows[:24]:
        print(f"{row.self_device_time_total / 1e4:8.4f} ms {row.count / 10:6.1f} x {row.key[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--base", default="auto")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    begin = time.perf_counter()
    decoder = load_decoder(args.checkpoint, base=args.base, device=device)
    about = {"base": args.base, "load_s": round(time.perf_counter() - begin, 1), "prompt": args.prompt, "new": args.new}
    results = []
    for batch in args.batch.split(","):
        results.append(measured(decoder, int(batch), args.prompt, args.new, check=args.check))
        print(json.dumps(about | results[-1]), flush=True)
    if args.profile:
        profile(decoder, args.prompt)
    if args.out is not None:
        args.out.write_text(json.dumps({"about": circumstances(device) | about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
