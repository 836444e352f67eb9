"""Other trainers in processes of their own: a stub that speaks, one that fails, one that hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whippet.bench import peers
from whippet.bench.peers import OUR_WAITING, SCRIPT, SILENT, Peers, importable

SPEAKS = """
import json, os, sys, time
print('a banner\\n{"not": "ours"}')
print(json.dumps({"peer": "unsloth", "value": 1000.0, "peak": 5, "asked": sys.argv[1:], "cwd": os.getcwd(),
    "env": dict(os.environ), "path": sys.path, "versions": {"unsloth": "1.2"}, "imported_at": time.time(),
    "first_step_at": time.time() + 2, "cached": os.path.exists("cache")}))
open("cache", "w").close()
print("{bye")
sys.stdout.flush()
os._exit(0)
"""


def stub(folder: Path, code: str) -> Path:
    """A folder to import from, with an ``unsloth`` that runs ``code``."""
    (folder / "unsloth").mkdir(parents=True)
    (folder / "unsloth" / "__init__.py").write_text(code)
    return folder


def steps(path: Path, **more: object) -> peers.Side:
    asked = Peers(["unsloth"], "cpu", path, **more)  # type: ignore[arg-type]
    return asked.steps(path, 2, 64, 16, 3, again=True)["unsloth"]


def test_one_that_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OUR_WAITING.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", "/ours")
    told = steps(stub(tmp_path, SPEAKS))
    assert (told.value, told.peak, told.error) == (1000.0, 5, "")
    asked, env = told.details["asked"], told.details["env"]
    assert asked[:2] == ["unsloth", str(tmp_path)] and asked[-4:] == ["--checkpointing", "unsloth", "--device", "cpu"]
    assert all(env[name] == value for name, value in SILENT.items())
    assert env["PYTHONPATH"] == str(tmp_path) and not OUR_WAITING.keys() & env.keys()
    assert str(SCRIPT.parent) not in told.details["path"]
    assert told.details["cwd"] != os.getcwd() and not Path(told.details["cwd"]).exists()


def test_one_that_fails(tmp_path: Path) -> None:
    told = steps(stub(tmp_path, "raise RuntimeError('no kernels for this card')"))
    assert told.value is None and told.error == "ended with 1: RuntimeError: no kernels for this card" and told.failed


def test_one_that_hangs(tmp_path: Path) -> None:
    told = steps(stub(tmp_path, "import time; time.sleep(60)"), limit=1.0)
    assert told.value is None and told.error.startswith("ran past 1 s")


def test_one_that_ends_in_silence(tmp_path: Path) -> None:
    assert steps(stub(tmp_path, "import os; os._exit(0)")).error == "ended without its line of figures"


def test_the_same_run_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Peers(["unsloth"], "cpu", stub(tmp_path, SPEAKS))
    runs = []
    real = Peers._run
    monkeypatch.setattr(Peers, "_run", lambda self, *args: runs.append(args) or real(self, *args))
    for again in (True, False, False):
        asked.steps(tmp_path, 2, 64, 16, 3, again=again)
    assert len(runs) == 2 and asked.versions == {"unsloth": "1.2"}


def test_cold_starts_share_a_folder_and_count_from_the_process_start(tmp_path: Path) -> None:
    empty, filled, imported = Peers(["unsloth"], "cpu", stub(tmp_path, SPEAKS)).cold(tmp_path)["unsloth"]
    assert not empty.details["cached"] and filled.details["cached"]
    assert empty.value is not None and 2 < empty.value < 30
    assert imported.value is not None and 0 < imported.value < 20
    assert empty.details["env"]["TRITON_CACHE_DIR"].startswith(empty.details["cwd"])


def test_one_gpu_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Peers([], "cuda:1")._environment()["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert Peers([], "cuda:1")._environment()["CUDA_VISIBLE_DEVICES"] == "6"
    assert Peers([], "cuda")._environment()["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_looking_for_one_imports_nothing(tmp_path: Path) -> None:
    assert importable("unsloth", stub(tmp_path, "raise SystemExit(9)"))
    assert not importable("unsloth", tmp_path / "elsewhere")


def test_the_package_never_imports_one() -> None:
    """Not even where all are installed and asked about."""
    code = """
import sys, torch
import whippet.bench.table, whippet.bench.chart, whippet.cli.bench
from whippet.bench.peers import importable
[importable(name) for name in ("unsloth", "hf")]
print([name for name in ("transformers", "peft", "unsloth", "trl", "bitsandbytes") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
