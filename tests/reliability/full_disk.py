"""Runs on a file system that fills up, then gone on with when there is room again: each a fork of one process.

usage: python full_disk.py CHECKPOINT DATA DISK SEED KIND=COUNT ...

DISK is a small file system of its own. Kinds say when it fills up, until a drawn number of bytes is left: ``save``
(before a checkpoint's save, to less than that takes), ``end`` (before the results are written), ``log`` (in the middle
of a line of the metrics). Prints one JSON line a draw: what was wrong, if anything.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from helpers_train import losses

from whippet.cli.main import main as whippet
from whippet.report.metrics import MetricsLog
from whippet.train import checkpoint, finish

STEPS, SAVE_EVERY = 8, 2
PAGE = 4096
TOLD = re.compile(r"needs [^(]*\(([\d,]+) bytes\) and [^(]*\(([\d,]+) bytes\) are free")
FREE = re.compile(r"([\d,]+) bytes are free")
RESULT = "adapter/adapter_model.safetensors"


def main() -> None:
    torch.set_num_threads(1)
    ckpt, data, disk = sys.argv[1:4]
    draw = random.Random(int(sys.argv[4]))
    reference = Path(disk).parent / "reference"
    # In this process: what torch imports at its first step would cost every child a second.
    assert train(ckpt, data, reference)() == 0
    weighs = sum(file.stat().st_size for file in (reference / "checkpoints" / f"step-{STEPS:06d}").iterdir())
    for pair in sys.argv[5:]:
        kind, count = pair.split("=")
        for number in range(int(count)):
            # The first ones are the corners: nothing left, and almost enough.
            share = (0.0, 0.97)[number] if number < 2 and kind == "save" else draw.uniform(0.0, 0.97)
            wrong = filled(
                kind, train(ckpt, data, Path(disk) / "run"), Path(disk), reference, int(share * weighs), draw
            )
            print(json.dumps({"kind": kind, "number": number, "share": round(share, 3), "wrong": wrong}), flush=True)
            for path in Path(disk).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def filled(kind: str, start: Callable[[], int], disk: Path, reference: Path, left: int, draw: random.Random) -> str:
    """What is wrong with a run on a disk on which ``left`` bytes are left when ``kind`` happens, and with going on."""
    out, save = disk / "run", draw.randint(1, STEPS // SAVE_EVERY)
    code, said = in_child(start, before=lambda: ARMS[kind](disk, left, save))
    if code != 1:
        return f"ended with {code}: {said[-300:]}"
    last = said.strip().splitlines()[-1]
    if not last.startswith("whippet: ") or "Traceback" in said:
        return f"told {said[-300:]!r}"
    wrong = misleading(kind, last, out, shutil.disk_usage(disk).free) or damaged(out, save if kind == "save" else 0)
    (disk / "ballast").unlink()
    code, said = in_child(start)
    return wrong or (f"going on ended with {code}: {said[-300:]}" if code else difference(reference, out))


def misleading(kind: str, told: str, out: Path, free: int) -> str:
    """What the message does not tell, or tells wrongly."""
    found = TOLD.search(told) if kind == "save" else FREE.search(told)
    if found is None:
        return f"does not name the bytes: {told}"
    *needs, says_free = (int(number.replace(",", "")) for number in found.groups())
    if needs and needs[0] <= says_free:
        return f"needs {needs[0]}, has {says_free}, and fails: {told}"
    if abs(says_free - free) > 16 * PAGE:
        return f"{free} bytes are free: {told}"
    return "" if "same command" in told and str(out) in told else f"does not say how to go on: {told}"


def damaged(out: Path, save: int) -> str:
    """Every checkpoint that was complete is whole, and no half of one is left."""
    folder = out / "checkpoints"
    found = checkpoint.steps(folder)
    for step in found:
        checkpoint.check(folder / f"step-{step:06d}", step)
    wanted = [step * SAVE_EVERY for step in range(1, save)][-2:]
    if save and found != wanted:
        return f"checkpoints of {found}, wanted {wanted}"
    left = [path.name for path in out.rglob("*") if ".tmp-" in path.name or path.name.endswith(".partial")]
    return f"left behind: {left}" if left else ""


def difference(reference: Path, out: Path) -> str:
    """What is not the same to the last bit as in a run with room."""
    last = f"checkpoints/step-{STEPS:06d}"
    names = [f"{last}/weights.safetensors", f"{last}/optimizer.safetensors", RESULT]
    differing = [name for name in names if (reference / name).read_bytes() != (out / name).read_bytes()]
    if losses(reference) != losses(out):
        differing.append("metrics.jsonl")
    return f"differs: {differing}" if differing else ""


def fill(disk: Path, left: int) -> None:
    """Write ballast until about ``left`` bytes are free."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        room = shutil.disk_usage(disk).free - left
        while room > 0:
            room -= file.write(bytes(min(room, 2**20)))


def arm_save(disk: Path, left: int, save: int) -> None:
    real, seen = checkpoint.save, iter(range(1, 100))

    def watched(*args: Any, **kwargs: Any) -> Path:
        if next(seen) == save:
            fill(disk, left)
        return real(*args, **kwargs)

    checkpoint.save = watched


def arm_end(disk: Path, left: int, save: int) -> None:
    real = finish.write_result

    def watched(*args: Any, **kwargs: Any) -> Path:
        fill(disk, left // 4)  # an adapter is a quarter of a checkpoint and less
        return real(*args, **kwargs)

    finish.write_result = watched


def arm_log(disk: Path, left: int, save: int) -> None:
    real, seen = MetricsLog.append, iter(range(1, 100))

    def watched(self: MetricsLog, record: dict[str, Any]) -> None:
        if next(seen) == 2 * save:
            fill(disk, 0)
            # Longer than what is left of the file's last page, so that only a part of the line is written.
            record = record | {"time": {"pad": PAGE * "x"}}
        real(self, record)

    MetricsLog.append = watched  # type: ignore[method-assign]


ARMS = {"save": arm_save, "end": arm_end, "log": arm_log}


def train(ckpt: str, data: str, out: Path) -> Callable[[], int]:
    keys = [
        "model.base=fp32", "model.device=cpu", "lora.r=16", f"train.max_steps={STEPS}", "train.tokens_per_step=160",
        f"train.save_every={SAVE_EVERY}", "train.learning_rate=0.01",
    ]  # fmt: skip
    words = ["finetune", ckpt, data, "--out", str(out), *(part for key in keys for part in ("--set", key))]
    return lambda: whippet(words)


def in_child(work: Callable[[], int], *, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Fork; return the exit code (minus the signal that killed it) and what was said on standard error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 99
        try:
            os.dup2(writing, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            before()
            code = work()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with open(reading, errors="replace") as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


if __name__ == "__main__":
    main()
