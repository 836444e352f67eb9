"""``kernels/truncate.py`` under Triton's interpreter; started by ``test_truncate.py``."""

from __future__ import annotations

import pytest
import torch
from kernels.truncate_cases import SETTINGS, columns, make

from whippet.kernels import triton_jit, truncate


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_jit, "usable", lambda x: True)


@pytest.mark.parametrize(("vocab", "block"), [(431, 128), (64, 64), (63, 128), (1, 16)])
def test_the_kernel_gives_the_reference_to_the_bit(vocab: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncate, "BLOCK", block)
    logits_BV, probs_BV = (x_BV[:, -vocab:].contiguous() for x_BV in make(len(SETTINGS), max(vocab, 3)))
    wanted_BV = truncate.truncate_reference(logits_BV, probs_BV, *columns(SETTINGS))
    found_BV = truncate.truncate(logits_BV, probs_BV, *columns(SETTINGS))
    assert torch.equal(found_BV, wanted_BV) and (vocab == 1 or not torch.equal(wanted_BV[0], wanted_BV[1]))


def test_equal_tokens_both_zeros_and_tiny_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncate, "BLOCK", 16)
    logits_BV = torch.full((6, 64), -0.0)
    logits_BV[:, 9:] = 0.0
    logits_BV[4:, 1:] = -39.0
    settings = [(10, 1.0, 0.0), (40, 0.5, 0.0), (0, 0.5, 0.0), (0, 0.51, 0.0), (0, 1.0, 0.0), (0, 0.999999, 0.0)]
    found_BV = truncate.truncate(logits_BV, logits_BV.softmax(-1), *columns(settings))
    for row, stay in enumerate([10, 20, 32, 33, 64, 1]):
        assert found_BV[row].nonzero()[:, 0].tolist() == list(range(stay))
