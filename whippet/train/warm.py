"""What the first step would wait for, made ready while the weights are read: the kernels of flash-attn-4.

Importing it takes seconds, and compiling its kernels ten, or one where they are kept on disk. Both are the work of one
thread, and reading weights is that of a disk and a GPU. Comes in: which checkpoint, and how long documents are. Nothing
goes out: a fault is not told here but, as without this, where attention is computed first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from whippet.kernels.attention import backend, packed_attention
from whippet.model.config import ModelConfig
from whippet.options import ModelOptions
from whippet.weights.load import choose_compute, read_config

TOKENS = 512
"""Of the document for which kernels are compiled: several of their tiles, as in a step."""


@contextlib.contextmanager
def attention_ready(folder: Path, model: ModelOptions, longest: int, device: torch.device) -> Iterator[None]:
    """When this is left, attention's kernels are there for the checkpoint in ``folder`` (and where they cannot be,
    nothing has happened). ``longest``: tokens of the longest document."""
    config, _ = read_config(folder)
    dtype = choose_compute(model.compute, model.base, device)
    if backend(device, dtype, config.head_dim, config.attention_softcap is not None) != "flash-attn-4":
        yield
        return
    thread = threading.Thread(target=_compile, args=(config, longest, dtype, device), name="flash-attn-4")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _compile(config: ModelConfig, longest: int, dtype: torch.dtype, device: torch.device) -> None:
    # Whatever it is: attention meets it again, and tells of it.
    with contextlib.suppress(Exception), torch.cuda.device(device):
        for windowed in sorted({0 < config.window(index) < longest for index in range(config.num_layers)}):
            heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
            qkv = torch.zeros(TOKENS, sum(heads), config.head_dim, dtype=dtype, device=device, requires_grad=True)
            q_TQD, k_TKD, v_TKD = qkv.split(heads, dim=1)
            borders = torch.tensor([0, TOKENS], dtype=torch.int32, device=device)
            how = config.attention_scale, TOKENS // 2 if windowed else 0, config.attention_softcap
            out_TQD = packed_attention(q_TQD, k_TKD, v_TKD, borders, TOKENS, *how)
            torch.autograd.grad(out_TQD, qkv, torch.zeros_like(out_TQD))
