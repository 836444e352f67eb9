"""Attention's kernels are compiled beside the reading of weights: for the right layers, in time, and without a word."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import change_config
from torch import Tensor

from whippet.options import ModelOptions
from whippet.train import warm
from whippet.train.warm import attention_ready

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What attention was asked for, by whom, as if flash-attn-4 were here."""
    made: list[tuple[Any, ...]] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, length: int, scale: float, *how: Any) -> Tensor:
        time.sleep(0.1)
        made.append((threading.current_thread().name, q.shape, k.shape, borders.tolist(), length, *how))
        out = (q + k.repeat_interleave(q.shape[1] // k.shape[1], 1) * scale).clone()
        out.register_hook(lambda grad: made.append(("backward", grad.shape)))
        return out

    monkeypatch.setattr(warm, "packed_attention", attention)
    monkeypatch.setattr(warm, "backend", lambda *_: "flash-attn-4")
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    return made


@pytest.mark.parametrize(("longest", "windows"), [(24, [0]), (25, [0, 256])])
def test_kernels_of_all_kinds_of_layers_are_compiled(
    tiny_checkpoint: Path, tmp_path: Path, calls: list[tuple[Any, ...]], longest: int, windows: list[int]
) -> None:
    """Forward and backward, in another thread, before the context is left."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    change_config(folder, model_type="qwen2", architectures=["Qwen2ForCausalLM"], use_sliding_window=True,
                  sliding_window=24, max_window_layers=1)  # fmt: skip
    with attention_ready(folder, ModelOptions("m"), longest, CPU):
        pass
    asked, backward = calls[0::2], calls[1::2]
    assert [call[5] for call in asked] == windows
    assert all(call[0] == "flash-attn-4" and call[3] == [0, 512] and call[4] == 512 for call in asked)
    assert backward == [("backward", asked[0][1])] * len(windows)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_is_left_to_who_needs_attention(
    tiny_checkpoint: Path, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Tensor:
        calls.append(("broken",))
        raise ImportError("of a library below")

    monkeypatch.setattr(warm, "packed_attention", broken)
    with attention_ready(tiny_checkpoint, ModelOptions("m"), 100, CPU):
        pass
    assert calls == [("broken",)]
    with pytest.raises(ValueError, match="of the loading"), attention_ready(tiny_checkpoint, ModelOptions("m"), 9, CPU):
        raise ValueError("of the loading")
    assert "flash-attn-4" not in [thread.name for thread in threading.enumerate()]


def test_elsewhere_nothing_is_compiled(tiny_checkpoint: Path, calls: list[tuple[Any, ...]], monkeypatch: Any) -> None:
    monkeypatch.setattr(warm, "backend", lambda *_: "sdpa")
    with attention_ready(tiny_checkpoint, ModelOptions("m"), 100, CPU):
        pass
    assert not calls
