"""Every file that is written can be read by whoever the umask lets: safetensors by itself writes for the owner only."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_models import random_decoder

from whippet import lora
from whippet.options import LoraOptions
from whippet.weights.adapter import save_adapter
from whippet.weights.files import write_json
from whippet.weights.hf import save_tensors, write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027], ids=oct)
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of a new file."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_weights_get_the_mode_of_their_neighbours(tmp_path: Path, mode: int) -> None:
    decoder = random_decoder()
    write_checkpoint(tmp_path, ((str(n), torch.ones(100)) for n in range(3)), max_shard_bytes=400)
    lora.attach(decoder, LoraOptions(r=2), seed=0)
    save_adapter(decoder, LoraOptions(r=2), tmp_path, "base")
    write_json(tmp_path / "config.json", {})
    found = modes(tmp_path)
    assert len(found) == 7 and set(found.values()) == {mode}


def test_what_lay_there_does_not_count(tmp_path: Path, mode: int) -> None:
    for name in ("x.safetensors", ".x.safetensors.partial"):
        (tmp_path / name).touch(0o600)
    save_tensors(tmp_path / "x.safetensors", {"x": torch.ones(2)})
    assert modes(tmp_path) == {"x.safetensors": mode}
