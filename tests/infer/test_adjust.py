"""Biases, penalties and masks: numbers by hand, and rows that want none of them."""

from __future__ import annotations

import math

import pytest
import torch

from whippet.infer.adjust import Adjustments, masked
from whippet.infer.sampling import Sampling

CPU = torch.device("cpu")


def adjusted(sampling: Sampling, prompt: list[int], reply: list[int], logits: list[float]) -> list[float]:
    """Penalised logits of slot 1 of 3, after ``reply`` was drawn token by token."""
    adjustments = Adjustments(3, len(logits), CPU)
    slots = torch.tensor([1])
    adjustments.place(1, sampling, prompt, [])
    for token_id in reply:
        adjustments.count(slots, torch.tensor([token_id]))
    return adjustments.penalties(torch.tensor([logits]), slots)[0].tolist()


def test_repetition_counts_prompt_and_reply_once() -> None:
    found = adjusted(Sampling(repetition_penalty=2.0), [0, 1, 1], [2, 2], [3.0, -3.0, 1.0, 5.0, 0.0])
    assert found == [1.5, -6.0, 0.5, 5.0, 0.0]


def test_frequency_counts_each_time_in_the_reply() -> None:
    assert adjusted(Sampling(frequency_penalty=0.5), [0, 0], [1, 2, 2, 2], [1.0] * 4) == [1.0, 0.5, -0.5, 1.0]


def test_presence_counts_once_in_the_reply() -> None:
    assert adjusted(Sampling(presence_penalty=-1.5), [0, 0], [1, 2, 2], [1.0] * 4) == [1.0, 2.5, 2.5, 1.0]


def test_repetition_comes_before_the_other_penalties() -> None:
    every = Sampling(repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=1.0)
    assert adjusted(every, [0], [1, 1], [4.0, 4.0, 4.0]) == [2.0, 2.0 - 0.5 - 1.0, 4.0]


def test_a_slot_is_taken_anew_and_a_reply_goes_on() -> None:
    adjustments, slots = Adjustments(2, 4, CPU), torch.tensor([0])
    adjustments.place(0, Sampling(frequency_penalty=1.0, repetition_penalty=2.0), [0], [1, 1])
    assert adjustments.penalties(torch.ones(1, 4), slots).tolist() == [[0.5, -1.5, 1.0, 1.0]]
    adjustments.place(0, Sampling(frequency_penalty=1.0, repetition_penalty=2.0), [3], [])
    assert adjustments.penalties(torch.ones(1, 4), slots).tolist() == [[1.0, 1.0, 1.0, 0.5]]


def test_biases_are_added_and_forgotten() -> None:
    adjustments, slots = Adjustments(3, 4, CPU), torch.tensor([2, 0])
    adjustments.place(2, Sampling(logit_bias={3: 1.5, 1: -100}), [], [])
    logits_BV = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 2)
    assert adjustments.biases(logits_BV, slots).tolist() == [[0.0, -99.0, 2.0, 4.5], [0.0, 1.0, 2.0, 3.0]]
    adjustments.place(2, Sampling(), [], [])
    assert torch.equal(adjustments.biases(logits_BV, slots), logits_BV)


def test_rows_that_want_nothing_are_passed_on_to_the_bit() -> None:
    adjustments = Adjustments(2, 6, CPU)
    adjustments.place(1, Sampling(repetition_penalty=1.7, frequency_penalty=0.3, logit_bias={2: 5.0}), [0, 1], [2])
    adjustments.place(0, Sampling(), [0, 1], [2])
    plain_V = torch.tensor([0.1, -0.0, 1e-40, -3.3e38, math.inf, -math.inf])
    logits_BV, slots_B = plain_V.repeat(2, 1), torch.tensor([0, 1])
    found_BV = adjustments.penalties(adjustments.biases(logits_BV, slots_B), slots_B)
    assert torch.equal(found_BV[0].view(torch.int32)[1:], plain_V.view(torch.int32)[1:])
    assert float(found_BV[0, 0]) == float(plain_V[0]) and not torch.equal(found_BV[1], plain_V)


@pytest.mark.parametrize("vocab", [31, 32, 33, 97])
def test_a_mask_shuts_out_what_its_bits_do_not_name(vocab: int) -> None:
    allowed_BV = torch.rand(3, vocab, generator=torch.Generator().manual_seed(vocab)) < 0.5
    allowed_BV[0] = True
    words = (vocab + 31) // 32
    mask = torch.zeros(3, words, dtype=torch.int64)
    for row in range(3):
        for token in range(vocab):
            mask[row, token // 32] |= int(allowed_BV[row, token]) << token % 32
    mask[0, -1] = 2**32 - 1  # what lies behind the vocabulary says nothing
    mask_BW = torch.where(mask >= 2**31, mask - 2**32, mask).int()
    logits_BV = torch.randn(3, vocab)
    assert torch.equal(masked(logits_BV, mask_BW), logits_BV.masked_fill(~allowed_BV, -math.inf))
