"""The engine equals a loop that recomputes everything; a batch equals its rows one by one."""

from __future__ import annotations

import pytest
import torch
from helpers_batching import small_pages
from helpers_infer import make_decoder

from whippet import lora
from whippet.errors import UsageError, WhippetError
from whippet.infer import engine
from whippet.infer.batching import Batcher
from whippet.infer.engine import Engine, Reply, generate
from whippet.infer.requests import Request
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [60, 0], [7, 7, 7], [1, 2, 3, 4, 5, 6, 7]]
NO_STOP: frozenset[int] = frozenset()


@torch.no_grad()
def naive(decoder: Decoder, prompt: list[int], most: int, stop: frozenset[int] = NO_STOP) -> list[int]:
    """Greedy decoding that runs the whole text for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most:
        borders = torch.tensor([0, len(ids)], dtype=torch.int32)
        hidden_TH = decoder(torch.tensor(ids), torch.arange(len(ids)), borders, len(ids))
        token_id = int(decoder.logits(hidden_TH[-1:]).argmax())
        if token_id in stop:
            break
        ids.append(token_id)
    return ids[len(prompt) :]


def test_the_decoder_of_these_tests_says_different_things(decoder: Decoder) -> None:
    replies = [naive(decoder, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(reply) for reply in replies}) == len(PROMPTS)
    assert all(len(set(reply)) > 5 for reply in replies)


def test_alone_equals_recomputing(decoder: Decoder) -> None:
    for prompt in PROMPTS:
        assert generate(decoder, [prompt], Sampling(30), NO_STOP) == [Reply(naive(decoder, prompt, 30), "length")]


def test_together_equals_recomputing(decoder: Decoder) -> None:
    replies = generate(decoder, PROMPTS, Sampling(30), NO_STOP)
    assert [reply.ids for reply in replies] == [naive(decoder, prompt, 30) for prompt in PROMPTS]


def test_stop_tokens_end_rows_at_different_times(decoder: Decoder) -> None:
    stop = frozenset({naive(decoder, PROMPTS[0], 12)[4], naive(decoder, PROMPTS[2], 12)[9]})
    expected = [naive(decoder, prompt, 30, stop) for prompt in PROMPTS]
    assert len({len(ids) for ids in expected}) > 2
    replies = generate(decoder, PROMPTS, Sampling(30), stop)
    assert [reply.ids for reply in replies] == expected
    for reply in replies:
        assert (reply.finish == "stop") == (len(reply.ids) < 30) == (reply.stop_id in stop)


def test_each_row_has_its_own_limit(decoder: Decoder) -> None:
    samplings = [Sampling(1 + 5 * index) for index in range(len(PROMPTS))]
    replies = generate(decoder, PROMPTS, samplings, NO_STOP)
    for prompt, sampling, reply in zip(PROMPTS, samplings, replies, strict=True):
        assert reply == Reply(naive(decoder, prompt, sampling.max_new_tokens), "length")


@pytest.mark.parametrize(
    ("limit", "value", "pages"), [("MAX_ROWS", 2, 40), ("MAX_CACHE_BYTES", 11_500, 11), ("MAX_CACHE_BYTES", 5_000, 8)]
)
def test_few_at_once_change_nothing(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, pages: int
) -> None:
    """Together they need 40 pages of 4 tokens and 1 KiB, and the largest 8."""
    small_pages(monkeypatch)
    needs = [len(prompt) + 20 for prompt in PROMPTS]
    whole = generate(decoder, PROMPTS, Sampling(20), NO_STOP)
    assert engine.engine_for(decoder, needs).cache_size == 4 * 40
    monkeypatch.setattr(engine, limit, value)
    assert engine.engine_for(decoder, needs).cache_size == 4 * pages
    assert generate(decoder, PROMPTS, Sampling(20), NO_STOP) == whole
    assert [reply.ids for reply in whole] == [naive(decoder, prompt, 20) for prompt in PROMPTS]


def test_an_engine_has_room_for_what_it_is_asked_and_what_goes_beside_it(decoder: Decoder) -> None:
    """Pages are of 64 tokens, and the context is of 96."""
    for need, least, size in ((3, 0, 64), (65, 0, 128), (3, 96, 128)):
        assert engine.engine_for(decoder, [need], least=least).cache_size == size


def read(made: Engine, number: int, most: int = 99) -> list[int]:
    ids: list[int] = []
    while len(ids) < most:
        event = made.next(number)
        ids += [event.drawn.id] if event.drawn is not None else []
        if event.last:
            break
    return ids


def test_two_requests_are_read_in_turns(decoder: Decoder) -> None:
    """What comes for one while the other is read is kept for it, and one may be asked for in between."""
    made = Engine(Batcher(decoder))
    first, second = (made.ask(Request(tuple(prompt), Sampling(12), NO_STOP)) for prompt in PROMPTS[:2])
    begun = read(made, first, 3)
    third = made.ask(Request(tuple(PROMPTS[2]), Sampling(12), NO_STOP))
    found = [read(made, second), read(made, third), begun + read(made, first)]
    assert found == [naive(decoder, PROMPTS[index], 12) for index in (1, 2, 0)]
    with pytest.raises(KeyError):
        made.next(first)


def test_what_is_dropped_takes_no_part_any_more(decoder: Decoder) -> None:
    batcher = Batcher(decoder)
    made = Engine(batcher)
    first, second = (made.ask(Request(tuple(prompt), Sampling(12), NO_STOP)) for prompt in PROMPTS[:2])
    made.next(first)
    made.drop(first)
    made.drop(first)
    assert batcher.running == 1
    assert read(made, second) == naive(decoder, PROMPTS[1], 12)
    assert batcher.cache_used == 0
    with pytest.raises(KeyError):
        made.next(first)


def test_what_generate_leaves_behind_when_it_fails(decoder: Decoder) -> None:
    batcher = Batcher(decoder)

    def on_token(row: int, token_id: int) -> bool:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(decoder, PROMPTS, Sampling(12), NO_STOP, on_token, Engine(batcher))
    assert not batcher.busy and batcher.cache_used == 0


def test_a_request_that_cannot_be_answered_says_so() -> None:
    decoder = make_decoder()
    with torch.no_grad():
        decoder.embedding[60] = torch.nan
    made = Engine(Batcher(decoder))
    broken, fine = (made.ask(Request(prompt, Sampling(4), NO_STOP)) for prompt in ((1, 60), (1, 2)))
    with pytest.raises(WhippetError, match="logits are not finite"):
        read(made, broken)
    assert read(made, fine) == naive(decoder, [1, 2], 4)


def test_sampled_rows_do_not_see_their_neighbours(decoder: Decoder) -> None:
    samplings = [Sampling(25, temperature=0.4 + 0.3 * i, top_k=20 * (i % 2), top_p=0.9, seed=i) for i in range(6)]
    together = generate(decoder, PROMPTS, samplings, NO_STOP)
    alone = [generate(decoder, [p], s, NO_STOP)[0] for p, s in zip(PROMPTS, samplings, strict=True)]
    assert together == alone
    assert together != generate(decoder, PROMPTS, Sampling(25), NO_STOP)


def test_seed_decides(decoder: Decoder) -> None:
    def ids(seed: int | None) -> list[int]:
        return generate(decoder, [PROMPTS[0]], Sampling(25, temperature=1.0, seed=seed), NO_STOP)[0].ids

    assert ids(5) == ids(5)
    assert ids(5) != ids(6)
    assert ids(None) != ids(None)


def test_a_full_context_ends_with_length(decoder: Decoder) -> None:
    context = decoder.config.context
    prompt = [index % 61 for index in range(context - 3)]
    (reply,) = generate(decoder, [prompt], Sampling(50), NO_STOP)
    assert reply == Reply(naive(decoder, prompt, 3), "length")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([], "prompt is empty"), ([61], "token id 61 is outside the vocabulary of 61"), ([-1], "outside the vocabulary"),
     ([1] * 96, "96 tokens, which leaves no room in the model's context of 96")],
)  # fmt: skip
def test_prompts_that_cannot_be_answered(decoder: Decoder, prompt: list[int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        generate(decoder, [[1], prompt], Sampling(5), NO_STOP)


def test_nothing_asked_nothing_said(decoder: Decoder) -> None:
    assert generate(decoder, [], Sampling(5), NO_STOP) == []


def test_on_token_sees_every_token_and_can_end_a_row(decoder: Decoder) -> None:
    seen: dict[int, list[int]] = {}

    def on_token(row: int, token_id: int) -> bool:
        seen.setdefault(row, []).append(token_id)
        return row == 1 and len(seen[row]) == 4

    replies = generate(decoder, PROMPTS, Sampling(10), NO_STOP, on_token)
    assert [seen[row] for row in range(len(PROMPTS))] == [reply.ids for reply in replies]
    assert replies[1] == Reply(naive(decoder, PROMPTS[1], 4), "stop")
    assert replies[2] == Reply(naive(decoder, PROMPTS[2], 10), "length")


def test_sampling_in_the_middle_of_training() -> None:
    """Dropout is off inside and on again afterwards; no gradient is recorded."""
    decoder = make_decoder()
    lora.attach(decoder, LoraOptions(r=4, dropout=0.5), seed=0)
    with torch.no_grad():
        for parameter in lora.adapter_parameters(decoder).values():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    expected = generate(decoder, PROMPTS, Sampling(20), NO_STOP)
    decoder.train()
    assert generate(decoder, PROMPTS, Sampling(20), NO_STOP) == expected
    assert all(module.training for module in decoder.modules())
    borders = torch.tensor([0, 3], dtype=torch.int32)
    hidden_TH = decoder(torch.tensor([1, 2, 3]), torch.arange(3), borders, 3)
    decoder.logits(hidden_TH).sum().backward()
    assert all(parameter.grad is not None for parameter in lora.adapter_parameters(decoder).values())
