"""From a cold start to the end of the first step, as a person meets it: ``whippet finetune`` in a process of its own.

Comes in: a checkpoint on disk. Goes out: ``Side`` with seconds, once with empty and once with filled caches of compiled
kernels, and the time that importing takes. Files may lie in the system's own cache of files: what of that is true is
not in our hand.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from whippet.bench.child import run_child
from whippet.bench.peers import CACHES
from whippet.bench.results import Side

WORDS = ("the", "of", "and", "to", "in", "is", "was", "he", "for", "it", "with", "as", "on", "be", "at", "by", "had")
RECORDS, RECORD_WORDS = 300, 60
KEYS = {
    "data.format": "text", "data.max_length": "2048", "train.tokens_per_step": "4096", "train.max_steps": "2",
}  # fmt: skip
NOT_A_PERSONS = ("PYTHONDONTWRITEBYTECODE",)
"""Variables of this process that a person's shell has not: with this one every start would compile all of its imports'
Python anew."""
IMPORTS = "import time, whippet.run; print(time.time())"
"""``whippet.run`` brings all that training needs, torch among it."""


def cold_starts(checkpoint: Path, device: str, limit: float) -> list[Side]:
    """Seconds to the first step that is logged with caches empty, and with caches filled; and to the import's end."""
    with TemporaryDirectory(prefix="whippet-cold-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        write_texts(folder / "texts.jsonl")
        starts = [_start(checkpoint, device, folder, name, limit) for name in ("empty", "filled")]
    return [*starts, import_time(limit)]


def write_texts(path: Path) -> None:
    """Documents of a few common words, always the same ones: two full packs and more."""
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(WORDS, k=RECORD_WORDS))}) for _ in range(RECORDS))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def import_time(limit: float) -> Side:
    """Seconds from the start of a process until everything is imported, the better of two."""
    sides = []
    for _ in range(2):
        ended = run_child([sys.executable, "-c", IMPORTS], limit=limit, env=_environment())
        if ended.code != 0:
            return Side(None, error=ended.complaint())
        said = ended.out.strip().rpartition("\n")[2]  # packages that are imported may say something too
        try:
            sides.append(float(said) - ended.began)
        except ValueError:
            return Side(None, error=f"importing ended with {said[:100]!r}, and not with the time")
    return Side(min(sides))


def _environment() -> dict[str, str]:
    """A person's."""
    return {name: value for name, value in os.environ.items() if name not in NOT_A_PERSONS}


def _start(checkpoint: Path, device: str, folder: Path, name: str, limit: float) -> Side:
    """One run, ended once its first step is logged."""
    run, caches = folder / name, folder / "caches"
    caches.mkdir(mode=0o700, exist_ok=True)
    env = _environment() | {variable: str(caches / place) for variable, place in CACHES.items()}
    # Attention's kernels (kernels/attention.py): this process may have set theirs already.
    env |= {"XDG_CACHE_HOME": str(caches), "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(caches / "flash-attn-4")}
    keys = KEYS | {"model.device": device}
    command = [sys.executable, "-m", "whippet", "finetune", str(checkpoint), str(folder / "texts.jsonl")]
    command += ["--out", str(run), *(word for key, value in keys.items() for word in ("--set", f"{key}={value}"))]
    log = run / "metrics.jsonl"
    ended = run_child(command, limit=limit, env=env, until=lambda: log.is_file() and log.read_text().endswith("\n"))
    if not ended.came:
        return Side(None, error=ended.complaint(), details={"command": command})
    first = json.loads(log.read_text(encoding="utf-8").splitlines()[0])
    details = {"command": command, "step_s": first["time"]["step_s"], "tokens": first["tokens"]}
    return Side(ended.seconds, first["time"].get("peak_bytes") if device != "cpu" else None, details=details)
