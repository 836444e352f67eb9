"""The table: each row measured here, then the others beside it.

Comes in: rows, and what is around them (device, checkpoints, records, peers). Goes out: one ``Result`` after another. A
row that fails is told in its place, and the next one follows.
"""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import whippet
from whippet import __version__
from whippet.bench.cold import cold_starts
from whippet.bench.context import measured_context, planned_context
from whippet.bench.peers import Peers
from whippet.bench.records import Records, measure_records, read_records
from whippet.bench.results import Result, Side
from whippet.bench.settings import CAPS, Row, shape_of
from whippet.bench.steps import measure, release
from whippet.errors import UsageError, WhippetError
from whippet.kernels import fp8, triton_jit
from whippet.kernels.attention import backend
from whippet.weights.load import read_config

CHILD_LIMIT = 600.0
PEER_RECORD_STEPS = 20


@dataclass
class Around:
    """What rows are measured with."""

    device: torch.device
    steps: int = 10
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    """Folders by the name of their shape."""
    records: Path | None = None
    contexts: Sequence[str] = ()
    """Caps under which the longest context is really run."""
    peers: Peers = field(default_factory=lambda: Peers([]))

    @cached_property
    def read(self) -> dict[str, Records]:
        """Records that were read, by the shape whose tokenizer they are for."""
        return {}

    def missing(self, row: Row) -> str:
        """What there would have to be for ``row``; nothing if it is there."""
        wanted = [f"--checkpoint PATH of the {row.setting.shape} shape"] * (row.setting.shape not in self.checkpoints)
        wanted += ["--records FILE"] * (self.records is None)
        return " and ".join(text for text in wanted if text.split()[0] in row.needs)


def by_shape(folders: Sequence[Path]) -> dict[str, Path]:
    """Checkpoints by their shapes. UsageError (or ModelError) for one that is of no shape known here, and for two of
    one."""
    found: dict[str, Path] = {}
    for folder in folders:
        shape = shape_of(read_config(folder)[0])
        if shape is None:
            raise UsageError(f"{folder}: its shape is none of those that are measured")
        if shape in found:
            raise UsageError(f"{folder}: {found[shape]} has the {shape} shape too")
        found[shape] = folder
    return found


def left_out(rows: Sequence[Row], around: Around) -> Iterator[str]:
    """A line for each thing that is missing, naming the rows that want it."""
    wanting: dict[str, list[str]] = {}
    for row in rows:
        if missing := around.missing(row):
            wanting.setdefault(missing, []).append(row.name)
    for missing, names in wanting.items():
        yield f"left out: {', '.join(names)} (needs {missing})"


def measure_rows(rows: Sequence[Row], around: Around) -> Iterator[Result]:
    """The results of ``rows``, as they come."""
    for row in rows:
        if not around.missing(row):
            yield from KINDS[row.kind](row, around)


def circumstances(device: torch.device) -> dict[str, Any]:
    """What the figures depend on, besides the settings."""
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "attention": backend(device, compute, 128),
        "versions": {
            "whippet": __version__,
            "torch": torch.__version__,
            "triton": getattr(triton_jit.triton, "__version__", None),
            "python": platform.python_version(),
        },
    }


def commit() -> str | None:
    """The commit that runs, with a plus if files differ from it; None outside of a checkout."""
    folder, git = Path(whippet.__file__).resolve().parents[1], shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    head = ask("rev-parse", "--short", "HEAD")
    return head if not head or ask("status", "--porcelain", "--untracked-files=no") == "" else f"{head}+"


def _steps(row: Row, around: Around) -> Iterator[Result]:
    setting = row.setting

    def ours() -> Side:
        if (
            "fp8" in (setting.base, setting.compute)
            and around.device.type == "cuda"
            and not fp8.supported(around.device)
        ):
            raise UsageError("fp8 needs an NVIDIA GPU of compute capability 9.0 (Hopper) or later")
        found = measure(setting, around.device, steps=around.steps * row.times, warmup=row.warmup)
        return Side(found.tokens_per_s, found.peak, details=found.as_dict())

    def theirs(peers: Peers, checkpoint: Path) -> Mapping[str, Side]:
        shape = (setting.docs, setting.length, setting.rank)
        return peers.steps(checkpoint, *shape, around.steps, again=row.checkpointing)

    yield Result(row.name, setting.name, "tokens/s", _tried(ours, around.device), _beside(row, around, theirs))


def _records(row: Row, around: Around) -> Iterator[Result]:
    setting = row.setting
    assert around.records is not None
    path, checkpoint = around.records, around.checkpoints[setting.shape]

    def records() -> Records:
        if setting.shape not in around.read:
            around.read[setting.shape] = read_records(path, checkpoint)
        return around.read[setting.shape]

    def ours() -> Side:
        return measure_records(row, records(), around.device, steps=around.steps * row.times)

    def theirs(peers: Peers, checkpoint: Path) -> Mapping[str, Side]:
        with TemporaryDirectory(prefix="whippet-texts-") as scratch:
            texts = Path(scratch) / "texts.jsonl"
            records().write_texts(texts)
            return peers.records(checkpoint, texts, PEER_RECORD_STEPS, packing=not row.examples)

    amount = f"{row.examples} examples" if row.examples else f"{setting.tokens:,} tokens"
    side = _tried(ours, around.device)
    beside = _beside(row, around, theirs) if not side.error else {}
    yield Result(row.name, f"{setting.shape} {setting.held} {amount}", "examples/s", side, beside)


def _context(row: Row, around: Around) -> Iterator[Result]:
    setting = row.setting
    for cap in dict.fromkeys((*CAPS, *around.contexts)):

        def ours(cap: str = cap) -> Side:
            if cap in around.contexts:
                return measured_context(setting, cap, around.device)
            return planned_context(setting, cap)

        what = f"{setting.shape} {setting.held} r{setting.rank} in {cap}"
        yield Result(row.name, what, "tokens", _tried(ours, around.device))


def _cold(row: Row, around: Around) -> Iterator[Result]:
    setting = row.setting
    checkpoint = around.checkpoints[setting.shape]
    release(around.device)
    sides: list[Side] = []

    def ours() -> Side:
        sides.extend(cold_starts(checkpoint, str(around.device), CHILD_LIMIT))
        return sides[0]

    first = _tried(ours, around.device)
    theirs = around.peers.cold(checkpoint)
    whats = (
        (row.name, f"{setting.shape} to step 1"),
        (f"{row.name}-again", f"{setting.shape}, kernels cached"),
        ("import", "all that trains"),
    )
    for index, ((name, what), side) in enumerate(zip(whats, sides or [first] * len(whats), strict=True)):
        yield Result(name, what, "s", side, {peer: told[index] for peer, told in theirs.items()})


KINDS: Mapping[str, Callable[[Row, Around], Iterator[Result]]] = {
    "steps": _steps,
    "records": _records,
    "context": _context,
    "cold": _cold,
}


def _tried(work: Callable[[], Side], device: torch.device) -> Side:
    """What ``work`` gives, or why it gave nothing."""
    try:
        side = work()
    except UsageError as error:
        side = Side(None, error=str(error), refused=True)
    except (WhippetError, RuntimeError, OSError, ValueError, KeyError) as error:
        # torch's, out of memory among them, are RuntimeErrors. A KeyError says no more than the key.
        told, kind = str(error).strip().partition("\n")[0], type(error).__name__
        side = Side(None, error=f"{kind}: {told}" if isinstance(error, KeyError) else told or kind)
    # Out of the except block, whose traceback would hold tensors.
    release(device)
    return side


def _beside(row: Row, around: Around, theirs: Callable[[Peers, Path], Mapping[str, Side]]) -> Mapping[str, Side]:
    """What others reach, if they are run and have a checkpoint of this shape."""
    checkpoint = around.checkpoints.get(row.setting.shape)
    return theirs(around.peers, checkpoint) if around.peers.names and checkpoint is not None else {}
