"""A run's folder: who may write to it, and whether what lies there is this run.

Comes in: a path and recipes. Goes out: ``claimed``, a lock that a process holds as long as it lives (a killed one frees
it), and answers. A folder that is neither empty nor a run of ours is never touched.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whippet.errors import UsageError
from whippet.options import Recipe

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

RECIPE, LOCK = "recipe.toml", ".lock"
OURS = (LOCK, f".{RECIPE}.partial")
"""What a run that was killed before it began may leave."""
MAY_DIFFER = (
    "out", "memory.budget", "train.max_steps", "train.epochs", "train.save_every", "train.keep", "train.eval_every",
    "train.sample_every", "train.sample_prompts", "train.track",
    "energy.country", "energy.pue", "energy.renewable_share", "energy.gpu_watts",
)  # fmt: skip
"""Keys that a run may be resumed with other values of: none changes what a step learns, but for the schedule's end."""


def is_run(folder: Path) -> bool:
    """Whether a run began here. UsageError if something else is here."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file; --out must name a folder")
    if (folder / RECIPE).is_file():
        return True
    held = [path.name for path in folder.iterdir() if path.name not in OURS] if folder.is_dir() else []
    if held:
        raise UsageError(f"{folder}: not empty and no run of whippet (it holds {held[0]!r}); choose another --out")
    return False


def check_same(before: Recipe, now: Recipe, folder: Path) -> None:
    """Raise UsageError naming the first key in which a run that began differs from what is asked for now."""
    old, new = flat(before), flat(now)
    for key, value in old.items():
        if key not in MAY_DIFFER and new[key] != value:
            raise UsageError(
                f"{folder}: this run began with {key} = {value!r}, not {new[key]!r}; choose another --out, or give the "
                "same value to go on"
            )


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every key with its dots, and its value."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            values |= {f"{item.name}.{sub.name}": getattr(value, sub.name) for sub in dataclasses.fields(value)}
        else:
            values[item.name] = value
    return values


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if absent) for this process. UsageError if a live one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    """Take the lock without waiting; the system frees it when the process ends, however it ends."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise UsageError(f"{folder}: in use by another process; wait for it, or choose another --out") from error
        raise
