"""Which tokens stay, by the definitions and one at a time; for the tests of ``kernels/truncate.py``."""

from __future__ import annotations

import torch
from torch import Tensor

SETTINGS = [
    (0, 1.0, 0.0), (1, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.5, 0.0), (0, 0.95, 0.0), (0, 1e-6, 0.0), (0, 1.0, 0.2),
    (0, 1.0, 1.0), (12, 0.8, 0.05), (5000, 0.9, 0.0), (7, 0.999, 0.0),
]  # fmt: skip
"""top_k, top_p, min_p."""


def make(rows: int, vocab: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits with many equal ones, as 16-bit models have them, some -inf, both zeros; and their probabilities."""
    logits_BV = (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2).bfloat16().float()
    logits_BV[:, ::7] = -torch.inf
    logits_BV[:, 1], logits_BV[:, 2] = 0.0, -0.0
    return logits_BV, (logits_BV / 1.3).softmax(-1)


def columns(settings: list[tuple[int, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    top_k, top_p, min_p = zip(*settings, strict=True)
    return torch.tensor(top_k), torch.tensor(top_p), torch.tensor(min_p)


def kept(logits_V: Tensor, probs_V: Tensor, top_k: int, top_p: float, min_p: float) -> dict[int, int]:
    """Each token that stays, and its weight."""
    top_p, min_p = float(torch.tensor(top_p)), torch.tensor(min_p)
    logits = logits_V.tolist()
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: top_k or None]
    weights = {token: int(float(probs_V[token]) * 2**60) for token in order}
    total, before, stay = sum(weights.values()), 0, {}
    for place, token in enumerate(order):
        inside = top_p >= 1 or float(before) < top_p * float(total)
        if place == 0 or (inside and bool(probs_V[token] >= min_p * probs_V[order[0]])):
            stay[token] = weights[token]
        before += weights[token]
    return stay
