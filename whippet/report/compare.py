"""How far two models are apart on the same tokens: the figures that an export is judged by.

Comes in: logits of both, row by row the same positions. Goes out: ``Comparison``, plain numbers. P: positions.
V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 64
"""Rows compared at a time: fp64 copies of this many rows of a large vocabulary stay below 200 MB."""
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return",
    "Question: What is 17 + 25?\nAnswer:",
    '{"name": "Ada", "born": 1815, "works": ["',
    "Water boils at 100 degrees Celsius, which is",
    "Die Würde des Menschen ist",
    "Il était une fois un roi qui",
    "1, 1, 2, 3, 5, 8, 13,",
    "To be, or not to be, that is the",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "机器学习是一种",
)
"""Texts whose every position is compared, the same for every model: prose, code, numbers, four languages."""
QUESTIONS = ("What can you do?", "Name three colours.", "How much is 12 times 12?", "Write a line about the sea.")
"""The same for models with a chat template, asked as a user would."""


@dataclass(frozen=True)
class Comparison:
    """A candidate against its reference, over all positions of all prompts."""

    positions: int
    max_difference: float
    """Largest absolute difference of two logits."""
    mean_kl: float
    """Mean over positions of KL(reference ‖ candidate), in nats."""
    max_kl: float
    greedy_agreement: float
    """Share of positions whose likeliest token is the same."""

    def __str__(self) -> str:
        return (
            f"mean KL {self.mean_kl:.2g} nats, logits differ by {self.max_difference:.2g} at most, "
            f"greedy agreement {self.greedy_agreement:.1%} over {self.positions} positions"
        )


def compare(reference_PV: Tensor, candidate_PV: Tensor) -> Comparison:
    """Measure the candidate; a value that is not finite on either side counts as infinitely far."""
    assert reference_PV.shape == candidate_PV.shape, (reference_PV.shape, candidate_PV.shape)
    differences, divergences, same = [], [], 0
    for reference, candidate in _rows(reference_PV, candidate_PV):
        if not (reference.isfinite().all() and candidate.isfinite().all()):
            return Comparison(len(reference_PV), float("inf"), float("inf"), float("inf"), 0.0)
        expected, given = reference.log_softmax(-1), candidate.log_softmax(-1)
        divergences.append((expected.exp() * (expected - given)).sum(-1).clamp_min(0))
        differences.append((reference - candidate).abs().max())
        same += int((reference.argmax(-1) == candidate.argmax(-1)).sum())
    kl_P = torch.cat(divergences)
    return Comparison(
        positions=len(kl_P),
        max_difference=float(torch.stack(differences).max()),
        mean_kl=float(kl_P.mean()),
        max_kl=float(kl_P.max()),
        greedy_agreement=same / len(kl_P),
    )


def _rows(reference_PV: Tensor, candidate_PV: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    for pair in zip(reference_PV.split(ROWS), candidate_PV.split(ROWS), strict=True):
        yield pair[0].double(), pair[1].double()
