"""What the tests of continuous batching share: a plain loop to compare with, requests of every kind, and a batcher that
does on the CPU what it does on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from whippet.infer import batching, prefill
from whippet.infer.batching import Batcher
from whippet.infer.draw import Drawer, Draws
from whippet.infer.requests import Event, Request
from whippet.infer.sampling import Sampling
from whippet.model import paged
from whippet.model.decoder import Decoder

SAMPLINGS = [
    Sampling(26),
    Sampling(11, temperature=1.0, seed=1),
    Sampling(17, temperature=0.8, top_p=0.9, seed=2),
    Sampling(8, repetition_penalty=1.4, presence_penalty=0.5),
    Sampling(21, temperature=1.3, top_k=9, seed=3, frequency_penalty=0.7),
    Sampling(1),
    Sampling(14, temperature=0.7, min_p=0.05, seed=4, logit_bias={5: 4.0, 9: -100.0}),
]


class AsOnGpu(Batcher):
    """The next step is launched before the tokens of the last are looked at, and passes are filled up to a few sizes,
    as if they were to be recorded. They are recorded anew each time: there is no graph here that could be replayed."""

    def __init__(self, decoder: Decoder, **options: Any) -> None:
        super().__init__(decoder, **options)
        self._ahead, self.went_ahead = True, 0
        for passes in (self._steps, self._read):
            passes._met, passes._graphs = _All(), _Nothing()
        self._steps.records = self._read._records = True

    def _launch(self, rows: Any, *, ahead: bool = False) -> Any:
        self.went_ahead += ahead
        return super()._launch(rows, ahead=ahead)

    def _sent_back(self, draws: Draws) -> tuple[list[Tensor], None]:
        found = [draws.ids_B, draws.finite_B, draws.logprob_B, draws.top_ids_BN, draws.top_logprobs_BN]
        return [tensor.clone() for tensor in found if tensor is not None], None


class _All(set[Any]):
    def __contains__(self, key: object) -> bool:
        return True


class _Nothing(dict[Any, Any]):
    def __contains__(self, key: object) -> bool:
        return False


class _Graph:
    def replay(self) -> None: ...

    def pool(self) -> None: ...


class Thirds:
    """A grammar: after a token comes one whose id is one more, modulo 3; the first is divisible by 3."""

    def __init__(self, vocab: int) -> None:
        self._vocab, self.accepted = vocab, list[int]()

    def allowed(self) -> Tensor:
        bits = [
            sum(1 << bit for bit in range(32) if self._may(32 * word + bit)) for word in range(-(-self._vocab // 32))
        ]
        return torch.tensor(bits).to(torch.int32)

    def accept(self, token_id: int) -> None:
        assert self._may(token_id)
        self.accepted.append(token_id)

    def _may(self, token_id: int) -> bool:
        return token_id % 3 == len(self.accepted) % 3 and token_id < self._vocab


def small_pages(monkeypatch: pytest.MonkeyPatch, size: int = 4) -> None:
    """Pages and passes of few tokens, so that short texts meet their borders; and what ``AsOnGpu`` has no GPU for."""
    for name, module in list(sys.modules.items()):
        if (name.startswith("whippet.infer.") or module is paged) and hasattr(module, "PAGE"):
            monkeypatch.setattr(module, "PAGE", size)
    monkeypatch.setattr(prefill, "FINE", 2 * size)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random tokens of a vocabulary of 61."""
    return tuple(torch.randint(61, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def asked(prompt: Sequence[int], sampling: Sampling, stop: Sequence[int] = (), **options: Any) -> Request:
    return Request(tuple(prompt), sampling, frozenset(stop), **options)


@torch.no_grad()
def scores(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """Logits [1, V] of what follows ``ids``, by a pass over all of them."""
    borders = torch.tensor([0, len(ids)], dtype=torch.int32)
    hidden_TH = decoder(torch.tensor(ids), torch.arange(len(ids)), borders, len(ids))
    return decoder.logits(hidden_TH[-1:])


def plain(decoder: Decoder, request: Request) -> list[Event]:
    """The events of ``request`` by a loop that runs the whole text for each token, without batch, cache or pages."""
    drawer, ids, events = Drawer(1, decoder.config.vocab_size, decoder.device), list(request.prompt), list[Event]()
    drawer.place(0, request.sampling, request.prompt)
    most = min(request.sampling.max_new_tokens, decoder.config.context - len(ids))
    grammar = Thirds(decoder.config.vocab_size) if request.grammar is not None else None
    while len(events) < most:
        mask = None if grammar is None else grammar.allowed()[None]
        token_id = int(drawer.draw(scores(decoder, ids), torch.tensor([0]), [0], mask).ids_B)
        if token_id in request.stop_ids:
            return [*events, Event(1, finish="stop", stop_id=token_id)]
        if grammar is not None:
            grammar.accept(token_id)
        ids.append(token_id)
        events.append(Event(1, batching.Drawn(token_id), "length" if len(events) + 1 == most else None))
    return events


def answers(
    batcher: Batcher,
    requests: Sequence[Request],
    arrivals: Sequence[int] = (),
    after: Callable[[int, dict[int, list[Event]]], None] = lambda step, told: None,
) -> list[list[Event]]:
    """The events of each of ``requests``; number i is asked before step ``arrivals[i]``. ``after`` is called after
    each step with what has been told so far. At the end nothing is held any more."""
    when = list(arrivals) or [0] * len(requests)
    told: dict[int, list[Event]] = {}
    numbers: dict[int, int] = {}
    step = 0
    while len(numbers) < len(requests) or batcher.busy:
        for index in (index for index, moment in enumerate(when) if moment == step):
            numbers[index] = batcher.add(requests[index])
            told[numbers[index]] = []
        for event in batcher.step():
            told[event.number].append(event)
        after(step, told)
        step += 1
        assert step < 2000, "the batcher does not come to an end"
    assert (batcher.running, batcher.waiting, batcher.cache_used) == (0, 0, 0)
    return [told[numbers[index]] for index in range(len(requests))]


def bare(events: Sequence[Event]) -> list[Event]:
    """``events`` without what depends on the company: numbers, how much was known, and how likely tokens were."""
    return [
        replace(event, number=1, cached=0, drawn=None if event.drawn is None else batching.Drawn(event.drawn.id))
        for event in events
    ]


def tokens(events: Sequence[Event]) -> list[int]:
    return [event.drawn.id for event in events if event.drawn is not None]
