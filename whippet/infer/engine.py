"""The engine: prompts in, replies out, several at once, each as if it were alone.

Comes in: a decoder, prompts as token ids, how to sample, which tokens end a reply. Goes out: a ``Reply`` for each.
``batching.py`` does the work; here are its two simple uses: all replies at the end, and one reply token by token.

Shapes: none; ids are lists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whippet.errors import WhippetError
from whippet.infer.batching import Batcher
from whippet.infer.requests import Event, Finish, Request
from whippet.infer.room import room_for
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder
from whippet.model.paged import PAGE, page_bytes

MAX_ROWS = 64
MAX_CACHE_BYTES = 2 * 1024**3
"""Of a cache that serves some prompts alone; fewer run at once, if these do not fit together."""

OnToken = Callable[[int, int], bool]
"""Called with the prompt's index and each new id; returning True ends that reply (``finish`` is then "stop")."""


@dataclass(frozen=True)
class Reply:
    """What followed one prompt."""

    ids: list[int]
    """The new tokens, without the token that ended them."""
    finish: Finish
    """``stop``: the model ended, or a stop text came. ``length``: max_new_tokens or the model's context is full."""
    stop_id: int | None = None
    """The token that ended the reply."""


class Engine:
    """A ``Batcher`` whose requests may be read in turns: what a step brings for others is kept for them."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._events: dict[int, deque[Event]] = {}

    @property
    def cache_size(self) -> int:
        """Tokens that fit."""
        return self._batcher.cache_size

    def ask(self, request: Request) -> int:
        """Take a request, as ``Batcher.add`` does."""
        number = self._batcher.add(request)
        self._events[number] = deque()
        return number

    def next(self, number: int) -> Event:
        """What happens next to that request. WhippetError if it cannot be answered."""
        mine = self._events[number]
        while not mine:
            assert self._batcher.busy, "a request that was asked gets no event"
            for event in self._batcher.step():
                if event.number in self._events:
                    self._events[event.number].append(event)
        event = mine.popleft()
        if event.last:
            del self._events[number]
        if event.error is not None:
            raise WhippetError(event.error)
        return event

    def drop(self, number: int) -> None:
        """That request is wanted no more."""
        if self._events.pop(number, None) is not None:
            self._batcher.cancel(number)


def engine_for(decoder: Decoder, needs: Sequence[int], *, reuse: bool = False, least: int = 0) -> Engine:
    """An engine whose cache fits requests that need so many tokens each, or the largest of them and what goes beside it
    in ``MAX_CACHE_BYTES``."""
    pages = sorted(-(-need // PAGE) for need in needs)
    fits = MAX_CACHE_BYTES // page_bytes(decoder.config, decoder.compute_dtype)
    count = max(pages[-1], min(max(sum(pages), -(-least // PAGE)), fits))
    rows = max(1, min(len(needs), MAX_ROWS))
    return Engine(Batcher(decoder, max_rows=rows, cache_tokens=count * PAGE, reuse=reuse))


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    stop_ids: frozenset[int],
    on_token: OnToken | None = None,
    engine: Engine | None = None,
) -> list[Reply]:
    """Reply to each of ``prompts`` (token ids), in their order; ``sampling`` is one for all or one for each.

    UsageError if a prompt is empty, holds an id outside the vocabulary, or leaves no room in the model's context.
    """
    if not prompts:
        return []
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    needs = [
        len(prompt) + room_for(prompt, one, decoder.config) for prompt, one in zip(prompts, samplings, strict=True)
    ]
    engine = engine if engine is not None else engine_for(decoder, needs)
    numbers = [
        engine.ask(Request(tuple(prompt), one, stop_ids)) for prompt, one in zip(prompts, samplings, strict=True)
    ]
    try:
        return [_reply(engine, number, index, on_token) for index, number in enumerate(numbers)]
    finally:
        for number in numbers:
            engine.drop(number)


def _reply(engine: Engine, number: int, index: int, on_token: OnToken | None) -> Reply:
    ids: list[int] = []
    while True:
        event = engine.next(number)
        if event.drawn is not None:
            ids.append(event.drawn.id)
            if on_token is not None and on_token(index, event.drawn.id):
                engine.drop(number)
                return Reply(ids, "stop")
        if event.finish is not None:
            return Reply(ids, event.finish, event.stop_id)
