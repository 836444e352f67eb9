"""Runs that are killed, stopped or starved at drawn points, then gone on with: one process that forks each of them.

usage: python draws.py CHECKPOINT DATA FOLDER SEED KIND=COUNT ...

Kinds: ``time`` (SIGKILL after a drawn time), ``save`` (SIGKILL at a drawn operation of a checkpoint's save, the middle
of a file's write included), ``term`` (SIGTERM), ``disk`` (no file may grow beyond a drawn size), each for fp32 and bf16
in turn. Torch is imported and the data are prepared once; a child costs a fork. Prints one JSON line a draw: what was
wrong, if anything.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from helpers_train import losses, settings
from safetensors import torch as safetensors_torch

from whippet import run as runs
from whippet.errors import WhippetError
from whippet.train import checkpoint, material
from whippet.weights import hf

STEPS, SAVE_EVERY, KEEP = 8, 2, 2
GATHERED: dict[str, Any] = {}


def main() -> None:
    torch.set_num_threads(1)
    ckpt, data, folder = (Path(text) for text in sys.argv[1:4])
    draw = random.Random(int(sys.argv[4]))
    counts = {kind: int(count) for kind, count in (pair.split("=") for pair in sys.argv[5:])}
    prepare_once()
    # What torch imports at its first step would cost every child a second.
    train(ckpt, data, folder / "warm", "fp32")()
    references = {}
    for compute in ("fp32", "bf16"):
        started = time.perf_counter()
        assert in_child(train(ckpt, data, folder / f"reference-{compute}", compute)) == 0
        references[compute] = (folder / f"reference-{compute}", time.perf_counter() - started)
    for kind, count in counts.items():
        for number in range(count):
            compute = ("fp32", "bf16")[number % 2]
            out = folder / f"{kind}-{number}"
            start = train(ckpt, data, out, compute)
            wrong = KINDS[kind](draw, start, out, references[compute][1])
            if not wrong:
                code = in_child(start)
                wrong = f"going on ended with {code}" if code else difference(references[compute][0], out)
            print(json.dumps({"kind": kind, "number": number, "compute": compute, "wrong": wrong}), flush=True)
            shutil.rmtree(out)


def train(ckpt: Path, data: Path, out: Path, compute: str) -> Callable[[], None]:
    tables = settings(
        model={"compute": compute},
        data={"eval_fraction": 0.2},
        train={
            "max_steps": STEPS,
            "save_every": SAVE_EVERY,
            "keep": KEEP,
            "eval_every": 3,
            "sample_every": 8,
            "sample_prompts": ["the quick"],
        },
    )
    return lambda: runs.finetune(ckpt, data, out=out, **tables)  # type: ignore[func-returns-value]


def prepare_once() -> None:
    """Children find in memory what the parent prepared: only the plan is made anew."""
    real = material.prepare

    def kept(*args: Any, **kwargs: Any) -> Any:
        if "prepared" not in GATHERED:
            GATHERED["prepared"] = real(*args, **kwargs)
        return GATHERED["prepared"]

    material.prepare = kept  # type: ignore[assignment]


def in_child(work: Callable[[], None], *, before: Callable[[], None] = lambda: None, wait: bool = True) -> int:
    """Fork; return the exit code (minus the signal that killed it), or the child's pid."""
    pid = os.fork()
    if pid:
        return code_of(pid) if wait else pid
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        before()
        work()
        code = 0
    except WhippetError as error:
        code = error.exit_code
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        code = 99
    finally:
        sys.stdout.flush()
        os._exit(code)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_in_time(draw: random.Random, start: Callable[[], None], out: Path, usual: float) -> str:
    pid = in_child(start, wait=False)
    time.sleep(draw.uniform(0.1, 1.0) * usual)
    os.kill(pid, signal.SIGKILL)
    code = code_of(pid)
    return intact(out, code) if code in (0, -signal.SIGKILL) else f"ended with {code}"


def killed_in_a_save(draw: random.Random, start: Callable[[], None], out: Path, usual: float) -> str:
    save, operation = draw.randint(1, STEPS // SAVE_EVERY), draw.randint(0, 24)

    def arm() -> None:
        real_save = checkpoint.save
        seen = {"saves": 0, "operations": 0, "inside": False}

        def count() -> None:
            if seen["inside"] and seen["saves"] == save:
                if seen["operations"] == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen["operations"] += 1

        def watched(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                count()
                result = function(*args, **kwargs)
                count()
                return result

            return call

        def half_written(tensors: Any, path: Path, metadata: Any = None) -> None:
            raw = safetensors_torch.save(tensors, metadata)
            with open(path, "wb") as file:
                file.write(raw[: len(raw) // 2])
                file.flush()
                count()
                file.write(raw[len(raw) // 2 :])

        def counted_save(*args: Any, **kwargs: Any) -> Path:
            seen["saves"] += 1
            seen["inside"] = True
            path = real_save(*args, **kwargs)
            seen["inside"] = False
            return path

        checkpoint.save = counted_save
        hf.save_file = half_written
        os.fsync = watched(os.fsync)
        shutil.rmtree = watched(shutil.rmtree)
        for name in ("rename", "replace", "mkdir"):
            setattr(Path, name, watched(getattr(Path, name)))

    code = in_child(start, before=arm)
    # A first save has fewer operations than a later one, which also removes an old checkpoint.
    return intact(out, code) if code in (0, -signal.SIGKILL) else f"ended with {code}"


def terminated(draw: random.Random, start: Callable[[], None], out: Path, usual: float) -> str:
    """Wait for a first step, so that the signal meets the loop, not the preparation."""
    pid = in_child(start, wait=False)
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < 2:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.3) * usual)
    os.kill(pid, signal.SIGTERM)
    code = code_of(pid)
    if code == -signal.SIGTERM:
        return ""  # it came after the loop, in the writing of results: as a kill
    if code not in (0, 143):
        return f"ended with {code}"
    logged, saved = last_step(out), checkpoint.steps(out / "checkpoints")
    return "" if saved and saved[-1] == logged else f"stopped after step {logged} with checkpoints of {saved}"


def starved(draw: random.Random, start: Callable[[], None], out: Path, usual: float) -> str:
    """After the first checkpoint, no file may grow beyond a drawn size; writes fail in the middle then."""
    size = draw.randint(1, 20_000)

    def arm() -> None:
        real_save = checkpoint.save
        saves = iter(range(100))

        def limited(*args: Any, **kwargs: Any) -> Path:
            if next(saves):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return real_save(*args, **kwargs)

        checkpoint.save = limited

    code = in_child(start, before=arm)
    if code not in (0, 1):
        return f"ended with {code}"
    return intact(out, code)


KINDS = {"time": killed_in_time, "save": killed_in_a_save, "term": terminated, "disk": starved}


def intact(out: Path, code: int) -> str:
    """The newest checkpoint is whole, and at most one interval of saves is lost."""
    said: list[str] = []
    folder = out / "checkpoints"
    for step in checkpoint.steps(folder):
        checkpoint.check(folder / f"step-{step:06d}", step)
    found = checkpoint.newest(folder, said.append)
    logged, saved = last_step(out), found.step if found is not None else 0
    if said or logged - saved > SAVE_EVERY:
        return f"after step {logged} the newest whole checkpoint is of {saved}; {said}"
    return ""


def last_step(out: Path) -> int:
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def difference(reference: Path, out: Path) -> str:
    """What is not the same to the last bit."""
    last = f"checkpoints/step-{STEPS:06d}"
    names = [f"{last}/weights.safetensors", f"{last}/optimizer.safetensors", "adapter/adapter_model.safetensors"]
    names += ["samples.jsonl"]
    differing = [name for name in names if (reference / name).read_bytes() != (out / name).read_bytes()]
    if losses(reference) != losses(out):
        differing.append("metrics.jsonl")
    left = [path.name for path in out.rglob("*") if ".tmp-" in path.name or path.name.endswith(".partial")]
    return f"differs: {differing}; left behind: {left}" if differing or left else ""


if __name__ == "__main__":
    main()
