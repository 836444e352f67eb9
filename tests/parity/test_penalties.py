"""Penalties, biases and truncation beside transformers' processors of logits."""

from __future__ import annotations

import pytest
import torch

from whippet.infer.adjust import Adjustments
from whippet.infer.sampling import Sampling
from whippet.kernels.truncate import truncate

process = pytest.importorskip("transformers.generation.logits_process", reason="transformers is not installed")
VOCAB = 211


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    adjustments, rows = Adjustments(4, VOCAB, torch.device("cpu")), [3, 1, 2]
    ids = torch.randint(0, VOCAB, (3, 60), generator=generator)
    logits_BV = torch.randn(3, VOCAB, generator=generator) * 4
    for row, slot in enumerate(rows):
        adjustments.place(slot, Sampling(repetition_penalty=penalty), ids[row, :40].tolist(), [])
    for step in range(40, 60):
        adjustments.count(torch.tensor(rows), ids[:, step])
    wanted = process.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits_BV)
    found = adjustments.penalties(logits_BV, torch.tensor(rows))
    assert torch.equal(found, wanted) and not torch.equal(found, logits_BV)


def test_logit_bias() -> None:
    logits_BV = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    bias = {3: 2.5, 200: -100.0, 17: 0.125}
    adjustments = Adjustments(1, VOCAB, torch.device("cpu"))
    adjustments.place(0, Sampling(logit_bias=tuple(bias.items())), [], [])
    wanted = process.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    found = adjustments.biases(logits_BV, torch.tensor([0]))
    assert torch.equal(found, wanted(torch.zeros(1, 1, dtype=torch.int64), logits_BV))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 20, 1.0, 0.0), (0.7, 0, 0.9, 0.0), (1.5, 0, 1.0, 0.1), (0.8, 50, 0.8, 0.05), (1.2, 3, 0.99, 0.0)],
)
def test_truncation(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits_BV = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(2)) * 2
    scores = process.TemperatureLogitsWarper(temperature)(None, logits_BV)
    if top_k:
        scores = process.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = process.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = process.MinPLogitsWarper(min_p)(None, scores)
    settings = torch.full((40,), top_k), torch.full((40,), top_p), torch.full((40,), min_p)
    weights_BV = truncate(logits_BV, (logits_BV / temperature).softmax(-1), *settings)
    assert torch.equal(weights_BV > 0, scores.isfinite())
    shares_BV = (weights_BV.double() / weights_BV.sum(-1, keepdim=True)).float()
    torch.testing.assert_close(shares_BV, scores.softmax(-1))
