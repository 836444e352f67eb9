"""Packing: nothing lost, nothing cut, well filled, quick."""

from __future__ import annotations

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from whippet.data.pack import best_fit


def checked(lengths: list[int], capacity: int) -> list[list[int]]:
    packs = best_fit(lengths, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    for pack in packs:
        assert pack == sorted(pack)
        assert sum(lengths[index] for index in pack) <= capacity or len(pack) == 1
    return packs


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 50))
def test_nothing_is_lost_and_no_pack_is_overfull(lengths: list[int], capacity: int) -> None:
    packs = checked(lengths, capacity)
    assert packs == best_fit(lengths, capacity)
    # No two packs could have been one.
    sizes = sorted(sum(lengths[index] for index in pack) for pack in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > capacity


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(12, 20))
def test_near_the_fewest_packs(lengths: list[int], capacity: int) -> None:
    def fewest(left: tuple[int, ...], rooms: tuple[int, ...]) -> int:
        if not left:
            return len(rooms)
        best = fewest(left[1:], tuple(sorted((*rooms, capacity - left[0]))))
        for place, room in enumerate(rooms):
            if room >= left[0] and room not in rooms[:place]:
                rest = (*rooms[:place], room - left[0], *rooms[place + 1 :])
                best = min(best, fewest(left[1:], tuple(sorted(rest))))
        return best

    assert len(best_fit(lengths, capacity)) <= 11 / 9 * fewest(tuple(lengths), ()) + 1


def test_the_tightest_place_is_taken() -> None:
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert best_fit([7, 12, 3], 10) == [[1], [0, 2]]
    assert best_fit([], 10) == []


def test_real_lengths_fill_packs() -> None:
    draw = random.Random(0)
    lengths = [min(2048, max(8, int(draw.lognormvariate(4.8, 0.9)))) for _ in range(4096)]
    packs = checked(lengths, 2048)
    assert sum(lengths) / (2048 * len(packs)) > 0.99


def test_a_window_is_packed_quickly() -> None:
    draw = random.Random(1)
    lengths = [draw.randint(8, 131_072) for _ in range(4096)]
    start = time.process_time()
    best_fit(lengths, 131_072)
    assert time.process_time() - start < 1.0
