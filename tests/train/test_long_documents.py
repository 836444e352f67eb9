"""The highest moment of a long document, counted: all that flash-attn-4's backward pass makes is in the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers_memory import traced
from helpers_models import TINY, random_decoder, stream
from torch import Tensor

from whippet import lora
from whippet.model import block, park
from whippet.options import LoraOptions
from whippet.train.limits import Limits
from whippet.train.memory import Workload, moving_bytes

TOKENS, TILE = 4096, 128
CONFIG = replace(
    TINY, num_layers=4, hidden_size=128, intermediate_size=448, num_heads=8, num_kv_heads=2, head_dim=16, vocab_size=64
)


class Attention(torch.autograd.Function):
    """Nothing but the tensors that flash-attn-4 makes, for a stream of documents and heads that share keys."""

    @staticmethod
    def forward(ctx: Any, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        out_TQD = torch.zeros(q_TQD.shape)
        ctx.save_for_backward(q_TQD, k_TKD, v_TKD, out_TQD, torch.empty(q_TQD.shape[:2]))
        return out_TQD

    @staticmethod
    def backward(ctx: Any, grad_TQD: Tensor) -> tuple[Tensor, ...]:
        q_TQD, k_TKD, v_TKD, *_ = ctx.saved_tensors
        grads = tuple(torch.zeros(x.shape) for x in (q_TQD, k_TKD, v_TKD))
        sums = [torch.empty(x.shape, dtype=torch.float32) for x in (q_TQD, k_TKD, v_TKD)]
        both = [torch.empty(q_TQD.shape[:2], dtype=torch.float32) for _ in ("log-sum-exp", "row sums")]
        del sums, both
        return grads


def test_attentions_backward_pass_is_the_highest_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "packed_attention", lambda q, k, v, *_: Attention.apply(q, k, v))
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = random_decoder(CONFIG).requires_grad_(False)
    lora.attach(decoder, LoraOptions(r=2), seed=0)
    decoder.train()
    decoder.recompute, decoder.park, decoder.tile = 4, 4, TILE
    ids = torch.arange(TOKENS) % CONFIG.vocab_size

    def forward() -> Tensor:
        return decoder(ids, *stream(TOKENS)).sum()

    forward().backward()  # gradients and the host's places are there from now on
    loss, held, _ = traced(forward)
    _, _, most = traced(loss.backward)
    work = Workload(CONFIG, "fp32", 4, LoraOptions(r=2), "adamw", "cuda", TOKENS, TOKENS, 1.0)
    planned = moving_bytes(work, Limits(TOKENS, 4, 64, park=4, tile=TILE))
    assert held + most == pytest.approx(planned, rel=0.03)
