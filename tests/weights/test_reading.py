"""Bytes of files, read piece by piece: all of them, in their places, from a file that is opened once."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from whippet.errors import ModelError
from whippet.weights import reading
from whippet.weights.hf import INDEX, CheckpointReader, write_checkpoint
from whippet.weights.reading import Files

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("system", ["linux", "elsewhere"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_every_piece_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, system: str) -> None:
    monkeypatch.setattr(reading, "PIECE", 1000)
    monkeypatch.setattr(reading, "sys", SimpleNamespace(platform=system))
    written = torch.randint(256, (12_345,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "file").write_bytes(written.numpy().tobytes())
    files = Files()
    for begin, size in ((0, 12_345), (17, 1000), (17, 1001), (345, 12_000), (12_345, 0), (5, 3)):
        read = files.read(tmp_path / "file", begin, size, torch.device(device))
        assert read.device.type == device and torch.equal(read.cpu(), written[begin : begin + size])
    for begin, size in ((12_000, 346), (10_000, 5000)):
        with pytest.raises(OSError, match=r"ends at byte 12,345, before 12,346|before 1\d,\d{3}"):
            files.read(tmp_path / "file", begin, size, torch.device(device))
    files.close()
    files.close()


def test_each_shard_is_opened_once_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often tensors of one and of another are asked for in turn."""
    tensors = {f"t{number}": torch.full((1000,), float(number)) for number in range(8)}
    assert len(write_checkpoint(tmp_path, tensors.items(), max_shard_bytes=16_000)) == 2
    opened = []
    monkeypatch.setattr(reading, "FileIO", lambda path: opened.append(open(path, "rb", buffering=0)) or opened[-1])  # noqa: SIM115
    with CheckpointReader(tmp_path) as reader:
        for number in (0, 4, 1, 5, 2, 6, 3, 7):
            assert torch.equal(reader.tensor(f"t{number}"), tensors[f"t{number}"])
    assert len(opened) == 2 and all(file.closed for file in opened)


def test_a_shard_that_shrank_meanwhile_is_named(tmp_path: Path) -> None:
    [file] = write_checkpoint(tmp_path, {"a": torch.ones(1000)}.items())
    assert not (tmp_path / INDEX).exists()
    with CheckpointReader(tmp_path) as reader:
        os.truncate(file, 2000)
        with pytest.raises(ModelError, match=rf"{file.name}: tensor 'a' cannot be read: it ends at byte 2,000"):
            reader.tensor("a")
