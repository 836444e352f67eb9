"""What a request may say of its reply; and the oracle of ``test_draw.py`` against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers_choose import choose

from whippet.errors import UsageError
from whippet.infer.sampling import Sampling


def allowed(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """Tokens that may be drawn with their probabilities, by the definitions, one token at a time."""
    scaled = [value / temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    kept = order[:top_k] if top_k else order
    highest = max(scaled)
    weights = {token: math.exp(scaled[token] - highest) for token in kept}
    total = sum(weights.values())
    shares = {token: weight / total for token, weight in weights.items()}
    nucleus, reached = [], 0.0
    for token in kept:
        nucleus.append(token)
        reached += shares[token]
        if reached >= top_p and top_p < 1:
            break
    final = {token: shares[token] for token in nucleus if shares[token] >= min_p * shares[order[0]]}
    return {token: share / sum(final.values()) for token, share in final.items()}


SETTINGS = [
    (1.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.0, 1, 1.0, 0.0), (1.3, 5, 1.0, 0.0), (1.0, 0, 0.5, 0.0),
    (0.8, 0, 0.95, 0.0), (1.0, 0, 1e-6, 0.0), (1.0, 0, 1.0, 0.2), (1.0, 0, 1.0, 1.0), (0.9, 12, 0.8, 0.05),
    (1.0, 500, 0.9, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_draws_follow_the_filtered_distribution(setting: tuple[float, int, float, float]) -> None:
    temperature, top_k, top_p, min_p = setting
    logits_V = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 2
    expected = allowed(logits_V.double().tolist(), temperature, top_k, top_p, min_p)
    draws = 20_001
    drawn = choose(
        logits_V.expand(draws, -1),
        torch.linspace(0, 1, draws + 1, dtype=torch.float64)[:-1],
        torch.full((draws,), temperature),
        torch.full((draws,), top_k),
        torch.full((draws,), top_p),
        torch.full((draws,), min_p),
    )
    counts = torch.bincount(drawn, minlength=40) / draws
    for token in range(40):
        assert float(counts[token]) == pytest.approx(expected.get(token, 0.0), abs=2 / draws), token


def test_without_filters_sorting_may_be_left_out() -> None:
    logits_BV = torch.randn(3000, 17, generator=torch.Generator().manual_seed(0))[:1].expand(3000, -1)
    uniform_B = torch.rand(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    off = (torch.ones(3000), torch.zeros(3000, dtype=torch.int64), torch.ones(3000), torch.zeros(3000))
    plain = torch.bincount(choose(logits_BV, uniform_B, *off, sort=False), minlength=17)
    ordered = torch.bincount(choose(logits_BV, uniform_B, *off), minlength=17)
    expected = logits_BV[0].softmax(-1) * 3000
    for counts in (plain, ordered):
        assert float(((counts - expected) ** 2 / expected).sum()) < 40  # chi square, 16 degrees: p < 0.001


def test_a_draw_never_falls_on_a_token_without_weight() -> None:
    logits_BV = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]])
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    off = (torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.zeros(1))
    assert int(choose(logits_BV, almost_one, *off, sort=False)) == 1
    assert int(choose(logits_BV, almost_one, *off)) == 0  # the last of those in order 1, 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 0), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
     ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan), ("top_k", -1), ("min_p", 1.5), ("seed", -1),
     ("seed", 2**63), ("stop", ("",)), ("stop", "x"), ("repetition_penalty", 0.0), ("repetition_penalty", 10.1),
     ("repetition_penalty", math.nan), ("presence_penalty", 2.1), ("presence_penalty", math.nan),
     ("frequency_penalty", -2.1), ("logit_bias", {-1: 1.0}), ("logit_bias", {2**31: 1.0}), ("logit_bias", {"5": 1.0}),
     ("logit_bias", {True: 1.0}), ("logit_bias", {5: 100.5}), ("logit_bias", {5: math.nan}), ("logit_bias", {5: "1"}),
     ("logit_bias", ((5, 1.0), (5, 2.0))), ("logit_bias", ((5,),)), ("logit_bias", [(5, 1.0)]), ("logit_bias", 5),
     ("logit_bias", dict.fromkeys(range(1025), 1.0))],
)  # fmt: skip
def test_settings_out_of_range(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{field} = .*must be"):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_biases_are_held_as_pairs_in_order() -> None:
    held = Sampling(logit_bias={7: 1, 3: -100})  # type: ignore[arg-type]
    assert held.logit_bias == ((3, -100.0), (7, 1.0))
    assert held == Sampling(logit_bias=((7, 1.0), (3, -100.0))) and hash(held) == hash(replace(held))
    assert len(Sampling(logit_bias=tuple((token, 0.5) for token in range(1024))).logit_bias) == 1024


def test_what_a_sampling_asks_for() -> None:
    assert not Sampling(logit_bias=((1, 1.0),)).penalises
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert Sampling(**{name: 0.5}).penalises  # type: ignore[arg-type]
    Sampling(logit_bias=((9, 1.0),)).check(10)
    with pytest.raises(UsageError, match="logit_bias = 10: must be about tokens below 10"):
        Sampling(logit_bias=((9, 1.0), (10, 1.0))).check(10)
