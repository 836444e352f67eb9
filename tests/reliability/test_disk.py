"""A disk that fills up: nothing that was whole is lost, the message tells the bytes, the same command goes on.

Real file systems that are full: small ones in memory, mounted for a test (``full_disk.py``), which needs root on Linux.
And how much a run takes is what its plan said.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_chat import real_tokenizer
from helpers_infer import CHAT, random_weights, write_checkpoint
from helpers_train import write_records
from safetensors.torch import save_file

import whippet
from whippet.cli.main import main

SCRIPT = Path(__file__).with_name("full_disk.py")
SIZE = 16 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs a command that mounts file systems")
    made = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    done = subprocess.run(made, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.strip() or done.returncode}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def drawn(checkpoint: Path, disk: Path, seed: int, *counts: str) -> None:
    """Let ``full_disk.py`` draw; nothing may be wrong."""
    data = write_records(disk.parent / "d.jsonl")
    command = [sys.executable, str(SCRIPT), str(checkpoint), str(data), str(disk), str(seed), *counts]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == sum(int(count.partition("=")[2]) for count in counts)
    assert [one for one in told if one["wrong"]] == []


def test_three_levels_of_a_disk_that_fills_up(tiny_checkpoint: Path, disk: Path) -> None:
    """Nothing, almost enough and a drawn part of a checkpoint left: exit 1, all whole, bytes named, gone on with."""
    drawn(tiny_checkpoint, disk, 0, "save=3")


def test_a_disk_full_at_the_log_or_the_end(tiny_checkpoint: Path, disk: Path) -> None:
    """In the middle of a line of the metrics, and when the adapter is written."""
    drawn(tiny_checkpoint, disk, 1, "log=1", "end=1")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_levels(tiny_checkpoint: Path, disk: Path) -> None:
    """Of each kind."""
    drawn(tiny_checkpoint, disk, 2, "save=20", "log=20", "end=20")


def test_a_disk_without_room_is_told_before_anything_is_written(
    tiny_checkpoint: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The preflight on a real file system that lacks a page."""
    data, out = write_records(disk.parent / "d.jsonl"), disk / "deep" / "run"
    words = [str(tiny_checkpoint), str(data), "--out", str(out), "--set", "train.max_steps=2"]
    assert main(["plan", *words, "--json"]) == 0
    needs = json.loads(capsys.readouterr().out)["disk_bytes"]
    page = os.sysconf("SC_PAGE_SIZE")
    left = needs // page * page
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - left))
    assert shutil.disk_usage(disk).free == left < needs
    assert main(["finetune", *words]) == 1
    told = capsys.readouterr().err
    assert f"({needs:,} bytes) on disk" in told and f"({left:,} bytes) are free" in told
    assert [path.name for path in disk.iterdir()] == ["ballast"]
    (disk / "ballast").unlink()
    assert main(["finetune", *words]) == 0


# --- what the plan says ---------------------------------------------------------------------------------------------


def wide_checkpoint(folder: Path, tokenizer: Path | None = None) -> Path:
    """A model of which a checkpoint has some 60 MB, against which JSON, curve and page are small."""
    write_checkpoint(folder, context=512)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 7000}
    if tokenizer is not None:
        config |= {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 128256, "tie_word_embeddings": True}
        shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": CHAT}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps(config))
    weights = random_weights(config, 0)
    if config["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    save_file({name: 0.1 * tensor.to(torch.bfloat16) for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def tree_bytes(folder: Path) -> int:
    """What files and folders take, in whole blocks, as the file system counts."""
    return sum(path.lstat().st_blocks * 512 for path in (folder, *folder.rglob("*")))


class Peak:
    """The most that a folder ever takes: what is written only grows between two removals of folders."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.bytes, real = folder, 0, shutil.rmtree

        def watched(*args: Any, **kwargs: Any) -> None:
            self.look()
            real(*args, **kwargs)

        monkeypatch.setattr(shutil, "rmtree", watched)

    def look(self) -> int:
        self.bytes = max(self.bytes, tree_bytes(self.folder))
        return self.bytes


def planned(out: Path) -> int:
    return int(json.loads((out / "plan.json").read_text())["disk_bytes"])


MORE = [pytest.param(method, keep, marks=pytest.mark.long) for method in ("full", "lora") for keep in (1, 3)]


@pytest.mark.parametrize(("method", "keep"), [("full", 2), *MORE])
def test_a_run_takes_the_disk_that_was_planned(
    method: str, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more; and within 3 % of it once a finished run is gone on with, whose result lies there already."""
    base, data, out = wide_checkpoint(tmp_path / "base"), write_records(tmp_path / "d.jsonl"), tmp_path / "run"
    peak = Peak(out, monkeypatch)

    def run(steps: int) -> int:
        train = {"method": method, "max_steps": steps, "save_every": 1, "keep": keep, "tokens_per_step": 100}
        tables: dict[str, Any] = {"train": train, "model": {"device": "cpu", "base": "fp32"}}
        whippet.finetune(base, data, out=out, **tables, **({"lora": {"r": 512}} if method == "lora" else {}))
        return peak.look()

    assert run(keep + 1) <= planned(out)
    assert run(keep + 2) <= planned(out) <= 1.03 * peak.bytes


def test_the_plan_counts_a_large_tokenizer(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small adapter beside the 7 MB of Llama-3's tokenizer, which lie beside what was trained."""
    base = wide_checkpoint(tmp_path / "base", real_tokenizer("llama3", tmp_path_factory))
    data, out = write_records(tmp_path / "d.jsonl"), tmp_path / "run"
    peak = Peak(out, monkeypatch)
    for steps in (2, 3):
        train = {"max_steps": steps, "save_every": 1, "tokens_per_step": 100}
        whippet.finetune(base, data, out=out, train=train, lora={"r": 4}, model={"device": "cpu", "base": "fp32"})
        assert peak.look() <= planned(out)
