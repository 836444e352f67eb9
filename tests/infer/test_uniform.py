"""The streams against published outputs of SplitMix64, plain integers, and what uniform numbers look like."""

from __future__ import annotations

import torch

from whippet.infer.uniform import bits, key, uniform

PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
"""The first outputs of Vigna's splitmix64.c for the state 1234567, as Rosetta Code lists them."""


def splitmix(state: int) -> int:
    """The output that follows ``state``, in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_published_outputs() -> None:
    drawn = bits(torch.full((5,), 1234567), torch.arange(5))
    assert [value % 2**64 for value in drawn.tolist()] == PUBLISHED


def test_any_place_of_any_stream_is_that_of_plain_integers() -> None:
    seeds = [0, 1, 77, 2**62 + 5, 2**63 - 1]
    places = [0, 1, 2, 1000, 131071]
    for seed in seeds:
        keys = torch.full((len(places),), key(seed))
        for place, value in zip(places, bits(keys, torch.tensor(places)).tolist(), strict=True):
            assert value % 2**64 == splitmix((key(seed) + place * 0x9E3779B97F4A7C15) % 2**64)
        # The key of a seed is the output that the state seed - GAMMA would give.
        assert key(seed) % 2**64 == splitmix((seed - 0x9E3779B97F4A7C15) % 2**64)


def test_numbers_are_uniform_along_a_stream_and_across_seeds() -> None:
    along = uniform(torch.full((40_000,), key(5)), torch.arange(40_000))
    across = uniform(torch.tensor([key(seed) for seed in range(40_000)]), torch.zeros(40_000, dtype=torch.int64))
    for drawn in (along, across):
        assert drawn.dtype == torch.float64 and float(drawn.min()) >= 0 and float(drawn.max()) < 1
        counts = torch.histc(drawn, bins=100, min=0, max=1)
        assert float(((counts - 400) ** 2 / 400).sum()) < 149  # chi square, 99 degrees: p < 0.001
        pairs = torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]
        assert abs(float(pairs)) < 4 / 40_000**0.5


def test_without_a_seed_the_system_draws() -> None:
    assert len({key(None) for _ in range(8)}) == 8 and key(3) == key(3) != key(4)
    assert all(-(2**63) <= key(None) < 2**63 for _ in range(8))
