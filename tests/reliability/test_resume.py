"""Killed anywhere, stopped or starved, a run goes on to the same last bit; see ``draws.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_train import write_records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
DRAWS = Path(__file__).with_name("draws.py")


def drawn(checkpoint: Path, folder: Path, seed: int, *counts: str) -> None:
    data = write_records(folder / "d.jsonl")
    command = [sys.executable, str(DRAWS), str(checkpoint), str(data), str(folder), str(seed), *counts]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == sum(int(count.partition("=")[2]) for count in counts), done.stdout[-3000:]
    assert [one for one in told if one["wrong"]] == [], done.stdout[-3000:]


def test_a_few_draws(tiny_checkpoint: Path, tmp_path: Path) -> None:
    drawn(tiny_checkpoint, tmp_path, 0, "time=3", "save=5", "term=2", "disk=2")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_draws(tiny_checkpoint: Path, tmp_path: Path) -> None:
    drawn(tiny_checkpoint, tmp_path, 1, "time=120", "save=80", "term=50", "disk=20")
