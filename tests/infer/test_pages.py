"""Who holds which page: a plain model of what lies in each, against any order of requests; and what goes first."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from whippet.infer import pages
from whippet.infer.pages import Held, Pages

SIZE = 2


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", SIZE)


@dataclass(eq=False)
class Sequence:
    held: Held
    ids: list[int]
    kind: str
    written: int
    """Tokens that lie in its pages."""


class Machine(RuleBasedStateMachine):
    """``data`` is what lies in each page: the kind, and all tokens up to the last in it."""

    @initialize(count=st.integers(2, 9), keep=st.booleans())
    def begins(self, count: int, keep: bool) -> None:
        self.pages, self.keep = Pages(count, keep=keep), keep
        self.data: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.running: list[Sequence] = []

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=9), kind=st.sampled_from("ab"), later=st.booleans())
    def arrives(self, ids: list[int], kind: str, later: bool) -> None:
        held = self.pages.begin(ids, kind)
        found = len(held.pages)
        assert found * SIZE < len(ids), "the last token was not left to compute"
        assert self.keep or not found
        for place, page in enumerate(held.pages):
            assert self.data[page] == (kind, tuple(ids[: (place + 1) * SIZE])), "another text's page"
        assert held.named == found
        if not self.grows(held, len(ids)):
            self.pages.release(held)
            return
        made = Sequence(held, ids, kind, found * SIZE)
        self.running.append(made)
        if not later:
            self.write(made, len(ids))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(1, 5))
    def is_computed(self, data: st.DataObject, more: int) -> None:
        """A piece of a prompt that is not through yet."""
        one = data.draw(st.sampled_from(self.running))
        self.write(one, min(one.written + more, len(one.ids)))

    @precondition(lambda self: any(one.written == len(one.ids) for one in self.running))
    @rule(data=st.data(), token=st.integers(0, 1))
    def goes_on(self, data: st.DataObject, token: int) -> None:
        one = data.draw(st.sampled_from([one for one in self.running if one.written == len(one.ids)]))
        if self.grows(one.held, len(one.ids) + 1):
            one.ids = [*one.ids, token]
            self.write(one, len(one.ids))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        self.pages.release(one.held)
        assert one.held == Held()

    def grows(self, held: Held, tokens: int) -> bool:
        before, free, more = list(held.pages), self.pages.free, -(-tokens // SIZE) - len(held.pages)
        given = self.pages.extend(held, tokens)
        assert given == (more <= free)
        assert held.pages[: len(before)] == before and len(held.pages) == len(before) + (more if given else 0)
        for page in held.pages[len(before) :]:
            self.data.pop(page, None)
        return given

    def write(self, one: Sequence, end: int) -> None:
        for place in range(one.written // SIZE, -(-end // SIZE)):
            page = one.held.pages[place]
            assert sum(page in other.held.pages for other in self.running) == 1, "written to while another reads"
            self.data[page] = (one.kind, tuple(one.ids[: min(end, (place + 1) * SIZE)]))
        one.written = max(one.written, end)
        self.pages.fill(one.held, one.ids[: one.written], one.kind)

    @invariant()
    def everyone_has_what_it_wrote(self) -> None:
        if not hasattr(self, "pages"):
            return
        for one in self.running:
            assert len(set(one.held.pages)) == len(one.held.pages)
            for place, page in enumerate(one.held.pages):
                assert 1 <= page <= self.pages.count
                if place * SIZE < one.written:
                    assert self.data[page] == (one.kind, tuple(one.ids[: min(one.written, (place + 1) * SIZE)]))
        held = {page for one in self.running for page in one.held.pages}
        assert self.pages.free + len(held) == self.pages.count, "a page is lost, or had twice"


def test_any_order_of_requests() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def kept(made: Pages, ids: list[int], kind: str | None = None) -> list[int]:
    """The pages of a request that came, was computed and went."""
    held = made.begin(ids, kind)
    assert made.extend(held, len(ids))
    made.fill(held, ids, kind)
    numbers = list(held.pages)
    made.release(held)
    return numbers


def found(made: Pages, ids: list[int], kind: str | None = None) -> list[int]:
    """The pages that ``ids`` would begin with."""
    held = made.begin(ids, kind)
    numbers = list(held.pages)
    made.release(held)
    return numbers


def test_all_that_is_full_is_found_but_never_the_last_token() -> None:
    made = Pages(6)
    numbers = kept(made, [1, 2, 3, 4, 5])
    assert found(made, [1, 2, 3, 4, 5]) == found(made, [1, 2, 3, 4, 9, 9, 9]) == numbers[:2]
    assert found(made, [1, 2, 3, 4]) == found(made, [1, 2, 3]) == found(made, [1, 2, 4, 4, 5]) == numbers[:1]
    assert found(made, [1, 2]) == found(made, [3, 4, 5]) == found(made, [1, 2, 3], "other") == []
    assert made.free == made.count == 5


def test_without_keep_nothing_is_found() -> None:
    made = Pages(6, keep=False)
    kept(made, [1, 2, 3, 4, 5])
    assert found(made, [1, 2, 3, 4, 5]) == [] and made.free == 5


def test_unused_pages_go_first_then_the_longest_idle_and_ends_before_beginnings() -> None:
    made = Pages(6)
    first, second = kept(made, [1, 1, 2, 2]), kept(made, [3, 3, 4, 4])
    other = Held()
    assert made.extend(other, SIZE) and found(made, [1, 1, 2, 2, 9]) == first and found(made, [3, 3, 4, 4, 9]) == second
    # Now the first was looked at before the second was, so it is older.
    for left, wanted in ((1, second), (0, second), (0, second[:1]), (0, [])):
        assert made.extend(other, (len(other.pages) + 1) * SIZE)
        assert found(made, [1, 1, 2, 2, 9]) == first[:left] and found(made, [3, 3, 4, 4, 9]) == wanted
    assert not made.extend(other, (len(other.pages) + 1) * SIZE) and made.free == 0


def test_two_that_compute_the_same_at_once_leave_one_copy() -> None:
    made, ids = Pages(9), [1, 1, 2, 2, 3]
    one, two = made.begin(ids), made.begin(ids)
    assert made.extend(one, 5) and made.extend(two, 5)
    made.fill(one, ids)
    made.fill(two, ids)
    expected = list(one.pages[:2])
    # What the second goes on with is named by the first's pages: whoever begins like it finds all three.
    assert made.extend(two, 7)
    third = two.pages[2]
    made.fill(two, [*ids, 4, 5])
    assert found(made, [*ids, 4, 5]) == [*expected, third]
    made.release(two)
    assert found(made, [*ids, 4, 5]) == [*expected, third]
    made.release(one)
    assert made.free == made.count
