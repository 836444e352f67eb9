"""What many tests share: a tiny random Llama on disk, in Hugging Face's layout, with a byte-level tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers_infer import write_checkpoint

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each take every core wait for each other: up to twenty times as long on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer checkpoint: 300 tokens, 64 wide, a chatml-like template, BOS added. Only read it."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny-checkpoint"), context=512)
