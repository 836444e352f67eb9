"""``benchmarks/random_checkpoint.py``: what it writes is loaded, in 16 bit and in bitsandbytes' 4 bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from whippet.demo import ASSETS
from whippet.kernels.nf4 import dequantize_nf4, quantize_nf4
from whippet.model.config import ModelConfig
from whippet.weights.hf import CheckpointReader
from whippet.weights.load import load_decoder, read_config

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "random_checkpoint.py"
MINI = ModelConfig("llama", 1536, 128, 192, 2, 4, 2, 32, 1024)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("random_checkpoint", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHAPES", {"mini": MINI})
    return module


def test_four_bit_is_sixteen_bit_quantised(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, more in (("plain", []), ("nf4", ["--nf4"])):
        words = ["random_checkpoint", "mini", str(tmp_path / name), "--tokenizer", str(ASSETS / "tiny"), *more]
        monkeypatch.setattr(sys, "argv", words)
        script.main()
    assert [read_config(tmp_path / name)[1] for name in ("plain", "nf4")] == [False, True]
    name = "model.layers.1.mlp.down_proj.weight"
    with CheckpointReader(tmp_path / "plain") as reader:
        wanted = dequantize_nf4(quantize_nf4(reader.tensor(name)))
    decoder = load_decoder(tmp_path / "nf4", compute="fp32", device="cpu")
    held = decoder.layers[1].down.nf4
    assert held is not None and held.nested_absmax is not None
    assert torch.equal(dequantize_nf4(held), wanted)
