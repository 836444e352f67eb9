"""Checkpoints in shards: written one at a time with an index that transformers reads, and read one at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from whippet.errors import UsageError
from whippet.kernels.nf4 import NF4Tensor
from whippet.model.config import ModelConfig
from whippet.model.families import config_to_hf
from whippet.weights.bnb_write import nf4_tensors
from whippet.weights.hf import INDEX, MAX_SHARD_BYTES, CheckpointReader, write_checkpoint
from whippet.weights.names import table


def test_of_what_is_written_one_shard_is_alive(tmp_path: Path) -> None:
    """Counted while the next tensor is made: those of the shard that it will go to, and no older one."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(40):
            most = max(most, len(alive))
            tensor = torch.full((256,), float(number))
            alive.add(tensor)
            yield f"t{number}", tensor
            del tensor

    files = write_checkpoint(tmp_path, made(), max_shard_bytes=10 * 1024)
    assert [path.name for path in files] == [f"model-{n:05d}-of-00004.safetensors" for n in range(1, 5)]
    assert most <= 10
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 40 * 1024}
    with CheckpointReader(tmp_path) as reader:
        assert all(float(reader.tensor(f"t{n}")[0]) == n for n in range(40))
        assert {index["weight_map"][name]: reader.files[name].name for name in reader.tensors} == {
            path.name: path.name for path in files
        }


def test_a_tensor_larger_than_a_shard_has_one_for_itself(tmp_path: Path) -> None:
    sizes = {"a": 10, "b": 5000, "c": 10}
    files = write_checkpoint(tmp_path, ((n, torch.zeros(s)) for n, s in sizes.items()), max_shard_bytes=1000)
    assert len(files) == 3
    assert MAX_SHARD_BYTES == 5 * 10**9
    twice = tmp_path / "twice"
    twice.mkdir()
    with pytest.raises(UsageError, match="'a' came twice"):
        write_checkpoint(twice, [("a", torch.zeros(9)), ("a", torch.zeros(9))], max_shard_bytes=1)


TWIN = ModelConfig("llama", 512, 512, 1792, 40, 8, 1, 64, 2048)
"""Llama 3 70B with a sixteenth of its width, an eighth of its heads and half of its layers."""
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def quantised_twin() -> Iterator[tuple[str, torch.Tensor]]:
    """Its tensors as bitsandbytes lays them out; codes are drawn, since quantising so many would take long."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)

    levels = torch.linspace(-1, 1, 256)
    for entry in table(TWIN):
        for part in entry.parts:
            if not entry.quantisable:
                yield part.name, torch.ones(part.shape, dtype=torch.bfloat16)
                continue
            count = math.prod(part.shape)
            nested = torch.full((-(-count // 64 // 256),), 0.01)
            codes, absmax, offset = drawn(count // 2), drawn(count // 64), torch.tensor(0.02)
            made = NF4Tensor(codes, absmax, part.shape, torch.bfloat16, nested, levels, offset)
            yield from nf4_tensors(part.name, made)


LOADING = """
import sys, threading
from whippet.weights.load import load_decoder

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])

def watch():
    global most
    while not done.wait(0.002):
        most = max(most, anonymous())

load_decoder(sys.argv[1], device="cpu")  # what torch takes once
before = most = anonymous()
done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
decoder = load_decoder(sys.argv[2], device="cpu")
held = sum(p.quantised.nbytes for _, p in decoder.projections()) + sum(p.nbytes for p in decoder.parameters())
done.set()
watcher.join()
print(most - before, held)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_loading_70_billion_in_4_bit_takes_what_they_are_and_a_matrix(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Measured on a twin of many shards: beside the model itself no more than one shard and 8 MB (of the real one a
    shard and 1 GB may be)."""
    files = write_checkpoint(tmp_path, quantised_twin(), max_shard_bytes=2 * 10**6)
    (tmp_path / "config.json").write_text(
        json.dumps(config_to_hf(TWIN, dtype="bfloat16", extra={"quantization_config": BNB}))
    )
    assert len(files) > 30
    command = [sys.executable, "-c", LOADING, str(tiny_checkpoint), str(tmp_path)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=one_thread)
    assert done.returncode == 0, done.stderr
    peak, held = map(int, done.stdout.split())
    assert 60e6 < held < peak <= held + max(path.stat().st_size for path in files) + 8e6
