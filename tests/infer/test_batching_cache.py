"""What requests find in the cache: what others left there, and never what they must not."""

from __future__ import annotations

import pytest
import torch
from helpers_batching import AsOnGpu, answers, asked, bare, plain, prompt_of, small_pages, tokens
from helpers_models import CONFIGS, random_decoder

from whippet.infer import batching
from whippet.infer.batching import Batcher
from whippet.infer.requests import Event, Request
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder


@pytest.fixture(autouse=True)
def pages_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pages(monkeypatch)


def known(events: list[Event]) -> int:
    """How many tokens were known; told with the first, and with no other."""
    assert [event.cached for event in events[1:]] == [0] * (len(events) - 1)
    return events[0].cached


def one(batcher: Batcher, request: Request) -> list[Event]:
    (events,) = answers(batcher, [request])
    return events


@pytest.mark.parametrize("kind", [Batcher, AsOnGpu])
def test_what_began_the_same_way_is_not_computed_again(decoder: Decoder, kind: type[Batcher]) -> None:
    prompt, batcher = prompt_of(13), kind(decoder)
    first = one(batcher, asked(prompt, Sampling(10)))
    said = tokens(first)
    assert known(first) == 0
    # Full pages, and never the last token; the next turn of a chat finds what was said too, but for its newest token.
    prompts = {
        12: prompt, 8: prompt[:12], 4: prompt[:5] + (60,) * 9, 0: prompt[:4],
        20: (*prompt, *said, 1, 2, 3), 16: (*prompt, *said[:7]),
    }  # fmt: skip
    for cached, again in prompts.items():
        request = asked(again, Sampling(6))
        events = one(batcher, request)
        assert known(events) == cached and bare(events) == plain(decoder, request)
    assert known(one(batcher, asked((9, *prompt[1:]), Sampling(1)))) == 0


def test_a_page_is_known_as_soon_as_it_is_full(decoder: Decoder) -> None:
    """Also while the request that filled it runs."""
    batcher, request = Batcher(decoder), asked(prompt_of(13), Sampling(12))
    found = answers(batcher, [request] * 4, [0, 0, 1, 5])
    assert [known(events) for events in found] == [0, 12, 12, 12]
    assert [bare(events) for events in found] == [plain(decoder, request)] * 4


@pytest.mark.parametrize("moment", [2, 3, 4])
def test_a_page_is_not_known_before_its_last_token_is_computed(decoder: Decoder, moment: int) -> None:
    """The newest token of a reply is not in the cache yet: 16 tokens are there when the reply has its fourth."""
    first = asked(prompt_of(13), Sampling(12))
    said = tokens(plain(decoder, first))
    second = asked((*first.prompt, *said[:moment], 1, 2), Sampling(4))
    found = answers(Batcher(decoder), [first, second], [0, moment])
    assert known(found[1]) == (16 if moment == 4 else 12)
    assert [bare(events) for events in found] == [plain(decoder, first), plain(decoder, second)]


def test_replies_to_one_prompt_part_ways(decoder: Decoder) -> None:
    requests = [asked(prompt_of(7), Sampling(15, temperature=1.0, seed=seed)) for seed in range(4)]
    found = answers(Batcher(decoder, max_rows=3), requests)
    assert [bare(events) for events in found] == [plain(decoder, request) for request in requests]
    assert len({str(bare(events)) for events in found}) == 4
    assert [known(events) for events in found] == [0, 4, 4, 4]


def test_without_reuse_nothing_is_kept(decoder: Decoder) -> None:
    batcher, request = Batcher(decoder, reuse=False), asked(prompt_of(13), Sampling(10))
    assert [known(one(batcher, request)) for _ in range(2)] == [0, 0]


def test_what_is_kept_makes_room(decoder: Decoder) -> None:
    """The cache has room for one at a time, and each finds what the one before left only if nobody came between."""
    batcher = Batcher(decoder, cache_tokens=24)
    requests = [asked(prompt_of(13, seed), Sampling(11)) for seed in (0, 0, 1, 0)]
    found = [one(batcher, request) for request in requests]
    assert [known(events) for events in found] == [0, 12, 0, 0]
    assert [bare(events) for events in found] == [plain(decoder, request) for request in requests]


def test_a_request_that_waits_for_pages_holds_none(decoder: Decoder) -> None:
    """What is known of its prompt may be taken from it, so that whoever runs comes to an end."""
    batcher = Batcher(decoder, cache_tokens=24, max_rows=2)
    requests = [
        asked(prompt_of(9), Sampling(1)),
        asked(prompt_of(4, 5), Sampling(20)),
        asked(prompt_of(21), Sampling(3)),
    ]
    requests[2] = asked((*prompt_of(9), *prompt_of(12, 7)), Sampling(3))
    found = [one(batcher, requests[0]), *answers(batcher, requests[1:])]
    assert [bare(events) for events in found] == [plain(decoder, request) for request in requests]
    assert known(found[2]) == 0


@pytest.fixture(scope="module")
def longrope() -> Decoder:
    """It turns documents of more than 14 tokens otherwise; and says different things."""
    decoder = random_decoder(CONFIGS["phi3"]).requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        if "norm" not in name:
            parameter.mul_(4.0)
    return decoder


LONG = [asked(prompt_of(length, length), Sampling(16)) for length in (3, 10, 13, 14, 15, 33)]


@pytest.fixture(scope="module")
def long_alone(longrope: Decoder) -> list[list[Event]]:
    return [plain(longrope, request) for request in LONG]


@pytest.mark.parametrize("kind", [Batcher, AsOnGpu])
@pytest.mark.parametrize("cache_tokens", [None, 52])
def test_replies_that_outgrow_the_original_context(
    longrope: Decoder,
    long_alone: list[list[Event]],
    kind: type[Batcher],
    cache_tokens: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "MOST_PREFILL", 7)
    assert len({event.drawn for events in long_alone for event in events}) > 30
    batcher = kind(longrope, max_rows=4, cache_tokens=cache_tokens)
    assert [bare(events) for events in answers(batcher, LONG, [0, 0, 0, 3, 3, 3])] == long_alone


def test_short_and_long_texts_share_nothing(longrope: Decoder) -> None:
    batcher, prompt = Batcher(longrope, cache_tokens=400), prompt_of(40)
    wanted = [(9, 2, 0), (20, 2, 0), (40, 2, 20), (12, 2, 8), (15, 2, 12)]
    for length, most, cached in wanted:
        request = asked(prompt[:length], Sampling(most))
        events = one(batcher, request)
        assert known(events) == cached and bare(events) == plain(longrope, request)
    # A reply that crosses the border leaves its beginning as that of a long text.
    crossing = asked(prompt[:9], Sampling(12))
    events = one(batcher, crossing)
    assert known(events) == 8 and bare(events) == plain(longrope, crossing)


def test_on_the_cpu_as_on_a_gpu_in_16_bit(longrope: Decoder) -> None:
    """The cache is in the compute dtype, and what is told still in fp32."""
    decoder = random_decoder(CONFIGS["llama"], dtype=torch.bfloat16)
    (events,) = answers(Batcher(decoder), [asked(prompt_of(9), Sampling(6), logprobs=True)])
    assert len(events) == 6 and all(event.drawn is not None and event.drawn.logprob is not None for event in events)
