"""Other trainers, each run in a process of its own beside ours. Nothing of them is ever imported here.

Comes in: a row, and a checkpoint of its shape. Goes out: ``Side``. Their code is called by ``benchmarks/peer.py``,
which lies beside the package in its repository and not in it: what is installed knows no other trainer. They run in an
empty folder, since some write where they stand, with telemetry switched off, and for a limited time. A failure is a
line of the table, never the end of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import whippet
from whippet.bench.child import Ended, run_child
from whippet.bench.results import Side

PACKAGES = {"unsloth": ("unsloth",), "hf": ("transformers", "peft", "bitsandbytes")}
"""Trainers that can be run, and what must be importable: unsloth; and transformers with peft and bitsandbytes."""
SCRIPT = Path(whippet.__file__).resolve().parents[1] / "benchmarks" / "peer.py"
STEPS_WARMUP, RECORDS_WARMUP = 4, 5
SILENT = {
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
}
OUR_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""What our command line sets for itself (``cli/main.py``). Others should run as they are."""
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
"""Where compiled kernels are kept, and the names that these folders get in one that is ours."""


@dataclass
class Peers:
    """Those that are run, and how. A run that two rows ask for is done once."""

    names: Sequence[str]
    device: str = "cuda"
    path: Path | None = None
    """A folder that their processes get as PYTHONPATH, in place of ours."""
    limit: float = 600.0
    """Seconds that one may take."""
    script: Path = SCRIPT
    versions: dict[str, str] = field(default_factory=dict)
    """Of what they stand on, as they told."""
    _done: dict[tuple[str, ...], Side] = field(default_factory=dict)

    def steps(self, checkpoint: Path, docs: int, length: int, rank: int, steps: int, *, again: bool) -> dict[str, Side]:
        """Steps of random tokens, tokens/s. ``again``: with activations computed again."""
        shape = ["--docs", str(docs), "--length", str(length), "--rank", str(rank)]
        timing = ["--steps", str(steps), "--warmup", str(STEPS_WARMUP)]
        return self._each(checkpoint, [*shape, *timing], again)

    def records(self, checkpoint: Path, texts: Path, steps: int, *, packing: bool) -> dict[str, Side]:
        """Their own trainer (TRL's) on texts, batch 2 × accumulation 4, or 8 packs a step; examples/s."""
        asked = ["--texts", str(texts.resolve()), "--steps", str(steps), "--warmup", str(RECORDS_WARMUP)]
        return self._each(checkpoint, asked + ["--packing"] * packing, again=True)

    def cold(self, checkpoint: Path) -> dict[str, list[Side]]:
        """Seconds to the end of the first step with caches of kernels empty and then filled; and to the import's."""
        return {name: self._cold(name, checkpoint) for name in self.names}

    def _each(self, checkpoint: Path, asked: Sequence[str], again: bool) -> dict[str, Side]:
        sides = {}
        for name in self.names:
            key = (name, str(checkpoint.resolve()), *asked, "--checkpointing", _checkpointing(name, again))
            if key not in self._done:
                with TemporaryDirectory(prefix="whippet-peer-", ignore_cleanup_errors=True) as scratch:
                    self._done[key] = self._side(self._run(key, Path(scratch)), "value")
            sides[name] = self._done[key]
        return sides

    def _cold(self, name: str, checkpoint: Path) -> list[Side]:
        asked = ["--docs", "2", "--length", "2048", "--steps", "1", "--warmup", "0"]
        key = (name, str(checkpoint.resolve()), *asked, "--checkpointing", _checkpointing(name, True))
        with TemporaryDirectory(prefix="whippet-peer-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch)
            caches = {variable: str(folder / place) for variable, place in CACHES.items()}
            empty, filled = (self._run(key, folder, caches) for _ in range(2))
        sides = [self._side(ended, "first_step_at", since_began=True) for ended in (empty, filled)]
        return [*sides, self._side(filled, "imported_at", since_began=True)]

    def _run(self, key: tuple[str, ...], scratch: Path, more: Mapping[str, str] | None = None) -> Ended:
        # -P: Python would otherwise look for modules beside the script first.
        command = [sys.executable, "-P", str(self.script), *key, "--device", self.device.partition(":")[0]]
        return run_child(command, limit=self.limit, env={**self._environment(), **(more or {})}, cwd=scratch)

    def _environment(self) -> dict[str, str]:
        env = dict(os.environ)
        if all(env.get(name) == value for name, value in OUR_WAITING.items()):
            env = {name: value for name, value in env.items() if name not in OUR_WAITING}
        if self.path is not None:
            env["PYTHONPATH"] = str(self.path.resolve())
        index = self.device.partition(":")[2]
        if index:
            seen = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
            env["CUDA_VISIBLE_DEVICES"] = seen[int(index)] if seen[0] else index
        return env | SILENT

    def _side(self, ended: Ended, figure: str, *, since_began: bool = False) -> Side:
        told = _told(ended.out)
        if ended.code != 0 or told is None:
            error = ended.complaint() if ended.code != 0 else "ended without its line of figures"
            return Side(None, error=error, details={"command": list(ended.command)})
        self.versions.update(told.get("versions", {}))
        value = told.get(figure)
        value = value - ended.began if value is not None and since_began else value
        return Side(value, told.get("peak"), details=told | {"command": list(ended.command)})


def importable(name: str, path: Path | None = None) -> bool:
    """Whether the trainer ``name`` is installed here or in ``path``. It is looked for, not imported."""
    places = [*([str(path)] if path is not None else []), *sys.path]
    return all(PathFinder.find_spec(package, places) is not None for package in PACKAGES[name])


def _checkpointing(name: str, again: bool) -> str:
    """What a trainer calls it: unsloth has one of its own."""
    return ("unsloth" if name == "unsloth" else "on") if again else "off"


def _told(out: str) -> dict[str, Any] | None:
    """The last line that is an object of JSON naming a peer: before and after it they say much."""
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and "peer" in told:
                return told
    return None
