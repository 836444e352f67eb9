"""Checkpoints: what is written is read back; what is damaged is noticed; nothing good is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from whippet.errors import WhippetError
from whippet.train import checkpoint
from whippet.train.checkpoint import Checkpoint, CorruptCheckpoint


def made(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"layers.0.q.a": torch.randn(3, 5, generator=generator), "layers.0.q.b": torch.zeros(5, 3)}
    states = {
        "layers.0.q.a:exp_avg": torch.randn(3, 5, generator=generator),
        "layers.0.q.a:step": torch.tensor(float(step)),
        "layers.0.q.a:codes": torch.arange(7, dtype=torch.uint8),
        "layers.0.q.b:count": torch.tensor(step),
    }
    return Checkpoint(step, weights, states, {"position": {"epoch": 1, "row": step}, "seconds": 0.1 + step})


def same(left: Checkpoint, right: Checkpoint) -> bool:
    pairs = ((left.weights, right.weights), (left.optimizer, right.optimizer))
    tensors = all(
        set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a) for a, b in pairs
    )
    return tensors and left.step == right.step and left.state == right.state


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, made(12), keep=2)
    assert path.name == "step-000012"
    assert same(checkpoint.load(path), made(12))
    assert sorted(p.name for p in path.iterdir()) == sorted((*checkpoint.FILES, checkpoint.MANIFEST))


def test_a_step_before_the_first_has_no_optimiser_state(tmp_path: Path) -> None:
    start = Checkpoint(0, made(0).weights, {}, {})
    assert same(checkpoint.load(checkpoint.save(tmp_path, start, keep=1)), start)


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        checkpoint.save(tmp_path, made(step), keep=2)
    assert checkpoint.steps(tmp_path) == [15, 20]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-000015", "step-000020"]


def test_nothing_old_goes_before_the_new_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every file operation of a save, a whole checkpoint can be read."""
    for step in (1, 2):
        checkpoint.save(tmp_path, made(step), keep=1)
    seen = []

    def look(*_: Any) -> None:
        found = checkpoint.newest(tmp_path, lambda text: None)
        assert found is not None
        seen.append(found.step)

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
        real = getattr(owner, name)

        def watched(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            look()
            result = _real(*args, **kwargs)
            look()
            return result

        monkeypatch.setattr(owner, name, watched)
    checkpoint.save(tmp_path, made(3), keep=1)
    assert seen[0] == 2 and seen[-1] == 3 and seen == sorted(seen) and len(seen) > 20


@pytest.mark.parametrize("name", [*checkpoint.FILES, checkpoint.MANIFEST])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, name: str) -> None:
    path = checkpoint.save(tmp_path, made(3), keep=1) / name
    raw = path.read_bytes()
    places = range(len(raw)) if name == checkpoint.MANIFEST else range(0, len(raw), max(1, len(raw) // 40))
    for place in places:
        for bit in (0, 5) if name == checkpoint.MANIFEST else (place % 8,):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << bit)]) + raw[place + 1 :])
            with pytest.raises(WhippetError):
                checkpoint.load(path.parent)
    path.write_bytes(raw)
    checkpoint.load(path.parent)


@pytest.mark.parametrize("name", [*checkpoint.FILES, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "longer"])
def test_damage_falls_back_and_says_so(tmp_path: Path, name: str, damage: str) -> None:
    for step in (4, 8):
        checkpoint.save(tmp_path, made(step), keep=2)
    path = tmp_path / "step-000008" / name
    raw = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case _:
            path.write_bytes({"cut": raw[:-1], "empty": b"", "longer": raw + b"\0"}[damage])
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None and same(found, made(4))
    if (name, damage) == (checkpoint.MANIFEST, "gone"):
        return  # without its seal it never was a checkpoint
    assert len(said) == 1 and name in said[0] and "falling back" in said[0]
    # Going on from 4, the damaged future does not stand in the way.
    for step in (6, 8):
        checkpoint.save(tmp_path, made(step), keep=2)
    assert checkpoint.steps(tmp_path) == [6, 8]
    assert same(checkpoint.load(tmp_path / "step-000008"), made(8))


@pytest.mark.parametrize("count", [1, 3])
def test_no_whole_checkpoint_is_an_error(tmp_path: Path, count: int) -> None:
    """Nobody is told of a fall back where there is nothing to fall back to."""
    for step in range(1, count + 1):
        path = checkpoint.save(tmp_path, made(step), keep=count)
        (path / checkpoint.WEIGHTS).write_bytes(b"")
    said: list[str] = []
    whole = "there is no other" if count == 1 else "none of the 3 checkpoints can be read"
    with pytest.raises(CorruptCheckpoint, match=rf"step-000001/weights\.safetensors: .*; {whole}\. Choose"):
        checkpoint.newest(tmp_path, said.append)
    assert len(said) == count - 1 and all("falling back" in text for text in said)
    assert checkpoint.newest(tmp_path / "absent", lambda text: None) is None


def test_a_manifest_of_another_step_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, made(4), keep=2)
    path.rename(tmp_path / "step-000005")
    with pytest.raises(CorruptCheckpoint):
        checkpoint.load(tmp_path / "step-000005")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["weights", "optimizer"])
def test_what_is_not_finite_is_never_written(tmp_path: Path, bad: float, kind: str) -> None:
    checkpoint.save(tmp_path, made(1), keep=1)
    broken = made(2)
    tensors = dict(getattr(broken, kind))
    name = next(iter(tensors))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[3] = bad
    both = {"weights": broken.weights, "optimizer": broken.optimizer, kind: tensors}
    with pytest.raises(WhippetError, match=r"layers\.0\.q\.a.*; the checkpoint of step 1 is intact\.") as caught:
        checkpoint.save(tmp_path, Checkpoint(2, both["weights"], both["optimizer"], {}), keep=1)
    assert caught.value.exit_code == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    with pytest.raises(WhippetError, match=r"layers\.0\.q\.a.*; there is no earlier checkpoint\."):
        checkpoint.save(tmp_path / "none", Checkpoint(2, both["weights"], both["optimizer"], {}), keep=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("call", range(10))
def test_a_disk_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Each of the syncs of a save fails once: there are four files, a sync of their folder after each, and the rest."""
    checkpoint.save(tmp_path, made(1), keep=1)
    real, count = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(count) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    if call > 8:
        checkpoint.save(tmp_path, made(2), keep=1)
        assert next(count) == 9, "a save has other syncs than this test thinks"
        return
    with pytest.raises(WhippetError, match=r"No space left.*bytes\) are free; the checkpoint of step") as caught:
        checkpoint.save(tmp_path, made(2), keep=1)
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    found = checkpoint.newest(tmp_path, lambda text: None)
    # When only the last sync of the folder failed, the new one is there, whole, beside the old.
    assert found is not None and found.step == (2 if call == 8 else 1)
    assert not list(tmp_path.glob(".tmp-*"))
    checkpoint.save(tmp_path, made(3), keep=1)
    assert checkpoint.steps(tmp_path) == [3]


def test_state_is_json(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, made(1), keep=1)
    assert json.loads((path / checkpoint.STATE).read_text())["position"] == {"epoch": 1, "row": 1}
