"""Rows for added tokens: the mean of those there were, and a model that says what it said before."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers_infer import make_decoder
from torch import Tensor

from whippet.errors import ModelError
from whippet.model.decoder import Decoder
from whippet.weights.resize import add_rows


def logits(decoder: Decoder, ids: list[int]) -> Tensor:
    places = torch.arange(len(ids))
    return decoder.logits(decoder(torch.tensor(ids), places, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids)))


def untied(vocab_size: int = 61) -> Decoder:
    return make_decoder(vocab_size=vocab_size)


def tied(vocab_size: int = 61) -> Decoder:
    decoder = make_decoder(vocab_size=vocab_size)
    decoder.head = None
    decoder.config = dataclasses.replace(decoder.config, tie_embeddings=True)
    return decoder


@pytest.mark.parametrize("make", [tied, untied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_the_mean_and_old_ones_stay(make: object, dtype: torch.dtype) -> None:
    assert callable(make)
    decoder = make()
    for name in ("embedding", "head"):
        if getattr(decoder, name) is not None:
            setattr(decoder, name, torch.nn.Parameter(getattr(decoder, name).to(dtype), requires_grad=name == "head"))
    before = {name: one.clone() for name, one in decoder.named_parameters() if name in ("embedding", "head")}
    add_rows(decoder, 61, 64)
    assert decoder.config.vocab_size == 64 and (decoder.head is None) == ("head" not in before)
    for name, old in before.items():
        new = getattr(decoder, name)
        assert new.shape == (64, 32) and new.dtype == dtype and new.requires_grad == (name == "head")
        assert torch.equal(new[:61], old)
        assert torch.equal(new[61:], old.float().mean(dim=0).to(dtype).expand(3, -1))


@pytest.mark.parametrize("make", [tied, untied])
def test_the_model_says_what_it_said(make: object) -> None:
    """Old scores are the same; a new token is never likelier than 1 in all; new tokens can be read."""
    assert callable(make)
    decoder = make()
    old = logits(decoder, [3, 1, 4, 1, 5])
    add_rows(decoder, 61, 63)
    new = logits(decoder, [3, 1, 4, 1, 5])
    torch.testing.assert_close(new[:, :61], old, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(new[:, 61], old.mean(dim=-1), rtol=1e-4, atol=1e-5)
    assert float(new.softmax(-1)[:, 61:].max()) <= 1 / 62
    shift = old.log_softmax(-1) - new.log_softmax(-1)[:, :61]
    assert 0 < float(shift.max()) <= math.log(63 / 61) + 1e-5
    assert logits(decoder, [3, 62, 61]).isfinite().all()


def test_spare_rows_are_taken_before_a_matrix_grows() -> None:
    """Qwen's checkpoints have more rows than its tokenizer has ids."""
    decoder = untied(70)
    head = decoder.head
    assert head is not None
    old = head.clone()
    add_rows(decoder, 61, 64)
    assert decoder.config.vocab_size == 70 and decoder.head is head
    assert torch.equal(head[:61], old[:61]) and torch.equal(head[64:], old[64:])
    assert torch.equal(head[61:64], old[:61].mean(dim=0).expand(3, -1))
    add_rows(decoder, 64, 72)
    assert decoder.config.vocab_size == 72 and torch.equal(decoder.head_weight[:64], head[:64])


@pytest.mark.parametrize(("before", "after"), [(0, 5), (62, 64), (61, 60)])
def test_what_does_not_fit_is_refused(before: int, after: int) -> None:
    with pytest.raises(ModelError, match="none to add to"):
        add_rows(untied(), before, after)


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(ModelError, match="not read"):
        add_rows(Decoder(untied().config), 61, 64)
