"""Requests that come and go together get what each would get alone, by a loop without batch or cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from helpers_batching import (
    SAMPLINGS,
    AsOnGpu,
    Thirds,
    answers,
    asked,
    bare,
    plain,
    prompt_of,
    scores,
    small_pages,
    tokens,
)
from helpers_infer import make_decoder

from whippet.errors import UsageError
from whippet.infer import batching
from whippet.infer.batching import NOT_FINITE, Batcher
from whippet.infer.prefill import Prefill, Reading
from whippet.infer.requests import Event, Request
from whippet.infer.running import Running
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder

LENGTHS = (5, 1, 9, 4, 20, 8, 17)
kinds = pytest.mark.parametrize("kind", [Batcher, AsOnGpu])


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Prompts of many lengths, each answered in another way; some end by a token."""
    return [
        asked(prompt_of(length, seed=length), sampling, stop=(3, 40) if length % 2 else ())
        for length, sampling in zip(LENGTHS, SAMPLINGS, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(decoder: Decoder, requests: list[Request]) -> list[list[Event]]:
    return [plain(decoder, request) for request in requests]


@pytest.fixture(autouse=True)
def pages_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pages(monkeypatch)


def test_the_requests_of_these_tests_end_in_every_way(alone: list[list[Event]]) -> None:
    assert {events[-1].finish for events in alone} == {"stop", "length"}
    assert len({tuple(tokens(events)[:3]) for events in alone}) == len(alone)
    assert all(len(set(tokens(events))) > 5 for events in alone if len(events) > 8)


@kinds
@pytest.mark.parametrize("seed", [0, 1])
def test_they_may_come_at_any_time(
    decoder: Decoder, requests: list[Request], alone: list[list[Event]], kind: type[Batcher], seed: int
) -> None:
    draw = random.Random(seed)
    order = draw.sample(range(len(requests)), len(requests))
    batcher = kind(decoder, max_rows=3)
    most_running = 0

    def watch(step: int, told: dict[int, list[Event]]) -> None:
        nonlocal most_running
        most_running = max(most_running, batcher.running)

    arrivals = sorted(draw.randrange(30) for _ in order)
    found = answers(batcher, [requests[index] for index in order], arrivals, watch)
    assert [bare(events) for events in found] == [alone[index] for index in order]
    assert most_running == 3
    assert not isinstance(batcher, AsOnGpu) or batcher.went_ahead > 10


@kinds
def test_all_at_once(decoder: Decoder, requests: list[Request], alone: list[list[Event]], kind: type[Batcher]) -> None:
    assert [bare(events) for events in answers(kind(decoder), requests)] == alone


def test_rows_that_only_fill_a_batch_up_write_where_nobody_is(decoder: Decoder) -> None:
    """Three run, as four; the slot of a fourth is free again, and its pages are others' now."""
    requests = [asked(prompt_of(5), Sampling(2))] + [asked(prompt_of(4, seed), Sampling(20)) for seed in (1, 2, 3)]
    found = answers(AsOnGpu(decoder, max_rows=4, reuse=False), requests)
    assert [bare(events) for events in found] == [plain(decoder, request) for request in requests]


def test_nothing_is_launched_for_who_has_all_its_tokens(decoder: Decoder) -> None:
    """The prompt brings the first of five, a step the second, and the steps of the other three begin early."""
    batcher = AsOnGpu(decoder)
    answers(batcher, [asked(prompt_of(5), Sampling(5))])
    assert batcher.went_ahead == 3


def test_each_step_brings_each_that_runs_a_token(decoder: Decoder) -> None:
    batcher = Batcher(decoder, max_rows=2)
    numbers = [batcher.add(asked(prompt_of(3, seed), Sampling(4))) for seed in range(3)]
    assert (batcher.running, batcher.waiting, batcher.busy) == (0, 3, True)
    for _ in range(4):
        assert [event.number for event in batcher.step()] == numbers[:2]
    assert (batcher.running, batcher.waiting) == (0, 1)
    assert [event.number for _ in range(4) for event in batcher.step()] == numbers[2:] * 4
    assert not batcher.busy and batcher.step() == []


@kinds
def test_a_cache_that_is_too_small_for_all_puts_some_back(
    decoder: Decoder,
    requests: list[Request],
    alone: list[list[Event]],
    kind: type[Batcher],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {"back": 0}
    put_back = Batcher._put_back

    def counted(self: Batcher, row: Running) -> None:
        counts["back"] += 1
        put_back(self, row)

    monkeypatch.setattr(Batcher, "_put_back", counted)
    batcher = kind(decoder, max_rows=8, cache_tokens=44)
    assert batcher.cache_size == 44
    assert [bare(events) for events in answers(batcher, requests)] == alone
    assert counts["back"] >= 2


@pytest.mark.parametrize("reuse", [False, True])
def test_who_is_put_back_goes_on_first(decoder: Decoder, reuse: bool) -> None:
    """It keeps what it has said, and is not told twice what was known of its prompt; and a request that came later, for
    which there would be room, does not overtake it."""
    batcher = Batcher(decoder, max_rows=2, cache_tokens=24, reuse=reuse)
    wanted = [asked(prompt_of(8, seed), Sampling(12)) for seed in range(2)] + [asked(prompt_of(4, 9), Sampling(2))]
    waited = []

    def watch(step: int, told: dict[int, list[Event]]) -> None:
        waited.append(batcher.running == 1 and batcher.waiting == 2 and 0 < len(told[2]) < 12 and not told[3])

    found = answers(batcher, wanted, after=watch)
    assert sum(waited) > 3
    assert [bare(events) for events in found] == [plain(decoder, request) for request in wanted]
    assert [event.cached for events in found for event in events] == [0] * 26


@kinds
def test_a_full_context_ends_with_length(decoder: Decoder, kind: type[Batcher]) -> None:
    requests = [asked(prompt_of(length, length), Sampling(50)) for length in (90, 95)]
    found = answers(kind(decoder), requests)
    assert [bare(events) for events in found] == [plain(decoder, request) for request in requests]
    assert [len(events) for events in found] == [6, 1]


def test_a_reply_ends_where_the_cache_does(decoder: Decoder) -> None:
    request = asked(prompt_of(9), Sampling(50))
    (events,) = answers(Batcher(decoder, cache_tokens=20), [request])
    assert bare(events) == plain(decoder, replace(request, sampling=Sampling(11)))


def test_long_prompts_go_through_in_pieces(
    decoder: Decoder, requests: list[Request], alone: list[list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MOST_PREFILL", 7)
    sizes: list[int] = []
    read = Prefill.__call__

    def counted(self: Prefill, rows: Sequence[Reading]) -> torch.Tensor:
        sizes.append(sum(len(row.ids) for row in rows))
        return read(self, rows)

    monkeypatch.setattr(Prefill, "__call__", counted)
    found = answers(Batcher(decoder), requests, [0, 0, 1, 1, 2, 9, 9])
    assert [bare(events) for events in found] == alone
    assert max(sizes) == 7 and sum(sizes) == sum(LENGTHS)


@kinds
@pytest.mark.parametrize("cache_tokens", [None, 44])
def test_cancelled_at_any_moment(
    decoder: Decoder,
    requests: list[Request],
    alone: list[list[Event]],
    kind: type[Batcher],
    cache_tokens: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Waiting, in the middle of its prompt, running, or put back: nothing follows, and nobody else notices."""
    monkeypatch.setattr(batching, "MOST_PREFILL", 7)
    batcher = kind(decoder, max_rows=3, cache_tokens=cache_tokens)
    for moment, goes in ((0, 2), (0, 5), (1, 1), (2, 0), (4, 3), (7, 2), (13, 4)):
        had: list[int] = []

        def cancel(step: int, told: dict[int, list[Event]], moment: int = moment, goes: int = goes) -> None:
            if step == moment:
                number = min(told) + goes
                batcher.cancel(number)
                had.append(len(told[number]))  # noqa: B023 - it is called in this turn of the loop

        found = answers(batcher, requests, after=cancel)
        expected = [events[: had[0]] if index == goes else events for index, events in enumerate(alone)]
        assert [bare(events) for events in found] == expected
        assert sorted(batcher._slots) == [0, 1, 2]


def test_cancelled_before_the_first_step_and_twice_and_never_known(decoder: Decoder) -> None:
    batcher = Batcher(decoder)
    number = batcher.add(asked([1, 2], Sampling(3)))
    batcher.cancel(number)
    batcher.cancel(number)
    batcher.cancel(99)
    assert not batcher.busy and batcher.step() == []


def test_how_likely_tokens_are_is_told_as_asked(decoder: Decoder) -> None:
    sampling = Sampling(6, temperature=1.5, top_k=5, seed=3, repetition_penalty=1.5)
    wants = [{}, {"logprobs": True}, {"top": 3}, {"logprobs": True, "top": 20}]
    requests = [asked(prompt_of(4 + place, place), sampling, **want) for place, want in enumerate(wants)]
    for found in (answers(Batcher(decoder), requests), [answers(Batcher(decoder), [one])[0] for one in requests]):
        for request, events in zip(requests, found, strict=True):
            ids = list(request.prompt)
            assert len(events) == 6
            for event in events:
                logprobs_V = scores(decoder, ids)[0].log_softmax(-1)
                drawn = event.drawn
                assert drawn is not None and (drawn.logprob is not None) == request.logprobs
                if drawn.logprob is not None:
                    assert drawn.logprob == pytest.approx(float(logprobs_V[drawn.id]), abs=1e-4)
                assert [token_id for token_id, _ in drawn.top] == logprobs_V.topk(request.top).indices.tolist()
                assert [value for _, value in drawn.top] == pytest.approx(
                    logprobs_V.topk(request.top).values.tolist(), abs=1e-4
                )
                ids.append(drawn.id)


@kinds
def test_grammars_say_what_may_come(decoder: Decoder, kind: type[Batcher]) -> None:
    def with_grammars() -> list[Request]:
        prompts = [prompt_of(6, place) for place in range(3)]
        free, bound, sampled = Sampling(12), Sampling(13), Sampling(12, temperature=1.0, seed=1)
        how = [(free, None), (bound, Thirds(61)), (sampled, Thirds(61))]
        return [asked(p, sampling, stop=(6,), grammar=g) for p, (sampling, g) in zip(prompts, how, strict=True)]

    requests = with_grammars()
    found = answers(kind(decoder, cache_tokens=40), requests)
    assert [bare(events) for events in found] == [plain(decoder, request) for request in with_grammars()]
    for request, events in zip(requests[1:], found[1:], strict=True):
        assert isinstance(request.grammar, Thirds) and request.grammar.accepted == tokens(events)
        assert [token_id % 3 for token_id in tokens(events)] == [place % 3 for place in range(len(tokens(events)))]


@kinds
def test_what_is_not_finite_ends_that_request_alone(kind: type[Batcher]) -> None:
    """Not even through pages that it leaves behind full of NaN."""
    decoder = make_decoder()
    wanted = [asked([2, 3, 4, 5, 6], Sampling(9)), asked([7, 8], Sampling(9))]
    expected = [plain(decoder, request) for request in wanted]
    with torch.no_grad():
        decoder.embedding[60] = torch.nan  # no greedy reply here has it
    batcher = kind(decoder, max_rows=2, cache_tokens=24)
    first, broken, second, again, last = answers(
        batcher, [wanted[0], asked([1] * 9 + [60], Sampling(9)), *wanted[1:], *wanted]
    )
    assert [replace(event, number=1) for event in broken] == [Event(1, error=NOT_FINITE)]
    assert [bare(events) for events in (first, second, again, last)] == [expected[0], expected[1], *expected]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (asked([], Sampling(5)), "prompt is empty"),
        (asked([61], Sampling(5)), "token id 61 is outside the vocabulary of 61"),
        (asked([1] * 96, Sampling(5)), "no room in the model's context of 96"),
        (asked([1] * 20, Sampling(5)), "the prompt has 20 tokens, and the cache has room for 20"),
        (asked([1], Sampling(5), adapter="law"), "there is no adapter 'law'; known: none"),
        (asked([1], Sampling(5), top=21), "top = 21: must be from 0 to 20"),
        (asked([1], Sampling(5), top=-1), "top = -1"),
        (asked([1], Sampling(5, logit_bias={61: 1.0})), "logit_bias = 61"),
    ],
)
def test_what_can_never_be_answered_is_refused_at_once(decoder: Decoder, request_: Request, said: str) -> None:
    batcher = Batcher(decoder, cache_tokens=20)
    with pytest.raises(UsageError, match=said):
        batcher.add(request_)
    assert not batcher.busy


def test_the_adapters_that_are_known_are_named(decoder: Decoder) -> None:
    with pytest.raises(UsageError, match="known: law, poems"):
        Batcher(decoder, cache_tokens=20, adapters=["law", "poems"]).add(asked([1], Sampling(5), adapter="poem"))
