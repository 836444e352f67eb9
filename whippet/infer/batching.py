"""Continuous batching: requests come and go, and each step gives every one that runs its next token.

Comes in: ``Request``. Goes out: ``Event``, from ``step``. A request waits until a slot and pages of the cache are free.
Its prompt goes through the decoder in one packed stream with other prompts', less what pages hold already because
another began the same way; from then on it gains a token a step, together with all others. When pages run out, the
request that came last is put back, and computed anew later. On a GPU the next step is launched before the tokens of the
last are looked at, so a request that has ended runs for one token more, which nobody sees.

B: rows of a step. T: tokens of all rows. V: vocabulary. W: words of 32 bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from whippet.errors import UsageError
from whippet.infer.draw import Drawer, Draws
from whippet.infer.evaluating import evaluating
from whippet.infer.pages import Pages
from whippet.infer.prefill import Prefill, Reading
from whippet.infer.requests import MOST_TOP, Drawn, Event, Request
from whippet.infer.room import cache_pages, room_for
from whippet.infer.running import Launched, Running, allowed, drawn_by
from whippet.infer.steps import Steps
from whippet.model.decoder import Decoder
from whippet.model.paged import PAGE, PagedCache

MOST_PREFILL = 8192
"""Tokens of prompts that go through the decoder at once; longer prompts take several passes."""
NOT_FINITE = "the model's logits are not finite: its weights are damaged, or fp16 overflowed"


class Batcher:
    """Answers requests in one thread. ``cache_tokens``: of all sequences together; None: what the device has room for.

    ``reuse`` False: nothing is kept of a request for the next (of a decoder whose weights change). ``adapters``: the
    names by which requests choose among adapters that lie beside the decoder, in the order of ``Decoder.choosing``;
    its number 0 is none of them.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_rows: int = 64,
        cache_tokens: int | None = None,
        adapters: Sequence[str] = (),
        reuse: bool = True,
    ) -> None:
        config = decoder.config
        self._decoder, self._adapters = decoder, {name: index + 1 for index, name in enumerate(adapters)}
        pages = cache_pages(decoder, max_rows, cache_tokens)
        self._cache = PagedCache(config, pages + 1, dtype=decoder.compute_dtype, device=decoder.device)
        self._pages, self._reuse = Pages(pages + 1, keep=reuse), reuse
        most = min(pages, -(-config.context // PAGE))
        self._steps = Steps(decoder, self._cache, max_rows, most)
        self._read = Prefill(decoder, self._cache, self._steps)
        self._drawer = Drawer(max_rows, config.vocab_size, decoder.device)
        self._slots = list(range(max_rows - 1, -1, -1))
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._known: dict[int, Running] = {}
        self._numbers = 0
        self._launched: Launched | None = None
        scaling = config.rope_scaling
        self._border = scaling.original_context if scaling is not None and scaling.kind == "longrope" else 0
        self._ahead = decoder.device.type == "cuda"

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting)

    @property
    def cache_size(self) -> int:
        """Tokens that the cache can hold."""
        return self._pages.count * PAGE

    @property
    def cache_used(self) -> int:
        """Tokens in pages that requests hold now."""
        return (self._pages.count - self._pages.free) * PAGE

    def add(self, request: Request) -> int:
        """Take a request; return the number that its events bear.

        UsageError if it can never be answered: an empty prompt, tokens outside the vocabulary, no room in the context
        or the cache, an adapter that is not there.
        """
        room = room_for(request.prompt, request.sampling, self._decoder.config)
        if len(request.prompt) + 1 > self.cache_size:
            raise UsageError(
                f"the prompt has {len(request.prompt)} tokens, and the cache has room for {self.cache_size}"
            )
        if request.adapter is not None and request.adapter not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise UsageError(f"there is no adapter {request.adapter!r:.60}; known: {known}")
        if not 0 <= request.top <= MOST_TOP:
            raise UsageError(f"top = {request.top}: must be from 0 to {MOST_TOP}")
        request.sampling.check(self._decoder.config.vocab_size)
        self._numbers += 1
        made = Running(self._numbers, request, list(request.prompt), min(room, self.cache_size - len(request.prompt)))
        self._known[made.number] = made
        self._waiting.append(made)
        return made.number

    def cancel(self, number: int) -> None:
        """End a request: what it holds is free, and no event follows. One that is not known (any more) is ignored."""
        row = self._known.get(number)
        if row is not None:
            self._end(row)

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Begin what waits, as far as there is room; one token for each request that runs; what came of it."""
        events: list[Event] = []
        with evaluating(self._decoder):
            self._admit()
            new = [row for row in self._running if not row.ready]
            if new and self._launched is not None:
                events += self._collect()
                new = [row for row in new if not row.ended]
            if new:
                ready = [row for row in self._running if row.ready]
                events += self._prefill(new)
                launched = self._launch(ready)
                return events + (self._told(launched) if launched is not None else [])
            launched = self._launched or self._launch(self._running)
            self._launched = None
            if self._ahead and launched is not None and self._may_go_on(launched):
                self._launched = self._launch(launched.rows, ahead=True)
            return events + (self._told(launched) if launched is not None else [])

    # ------------------------------------------------------------------ what waits

    def _admit(self) -> None:
        while self._waiting and self._slots:
            row = self._waiting[0]
            row.long = self._is_long(row)
            if self._begins_as_one_that_is_read(row):
                return
            kind = self._kind(row)
            row.held = self._pages.begin(row.ids, kind)
            if not self._pages.extend(row.held, len(row.ids)):
                self._pages.release(row.held)
                if not self._running:
                    raise AssertionError("a request that was taken does not fit in an empty cache")
                return
            self._waiting.popleft()
            row.slot, row.filled = self._slots.pop(), row.held.named * PAGE
            if not row.told:
                row.cached = row.filled
            self._drawer.place(row.slot, row.request.sampling, row.request.prompt, row.ids[len(row.request.prompt) :])
            self._steps.hold(row.slot, row.held.pages)
            self._running.append(row)

    def _begins_as_one_that_is_read(self, row: Running) -> bool:
        """Whether the pages that ``row`` begins with are being computed for another: a step later they are known."""
        start, kind = row.ids[:PAGE], self._kind(row)
        return (
            self._reuse
            and len(row.ids) > PAGE
            and any(
                not other.ready and other.ids[:PAGE] == start and self._kind(other) == kind for other in self._running
            )
        )

    def _kind(self, row: Running) -> tuple[str | None, bool]:
        """What a page's keys depend on besides its tokens and those before."""
        return row.request.adapter, row.long

    def _is_long(self, row: Running) -> bool:
        return 0 < self._border < len(row.ids)

    def _prefill(self, rows: list[Running]) -> list[Event]:
        """Run what the cache does not hold of ``rows``, up to ``MOST_PREFILL`` tokens; draw for who is through."""
        chosen: list[Running] = []
        ends: list[int] = []
        left = MOST_PREFILL
        for row in rows:
            if left <= 0 and chosen:
                break
            # By LongRoPE all of a document is turned as its length wants, so such a prompt is not parted.
            count = len(row.ids) - row.filled
            count = count if self._border else min(count, max(left, 1))
            chosen.append(row)
            ends.append(row.filled + count)
            left -= count
        hidden_BH = self._read(
            [
                Reading(row.slot, row.ids[row.filled : end], row.filled, self._adapter(row))
                for row, end in zip(chosen, ends, strict=True)
            ]
        )
        through = [place for place, (row, end) in enumerate(zip(chosen, ends, strict=True)) if end == len(row.ids)]
        for row, end in zip(chosen, ends, strict=True):
            row.filled = end
            self._pages.fill(row.held, row.ids[:end], self._kind(row))
        if not through:
            return []
        done = [chosen[place] for place in through]
        slots = [row.slot for row in done]
        logits_BV = self._decoder.logits(hidden_BH[self._steps.sent(through, torch.int64)])
        slots_B = self._steps.sent(slots, torch.int64)
        for row in done:
            row.ready = True
            self._steps.put(row.slot, 0, len(row.ids) - 1, self._adapter(row))
        return self._told(self._drawn(done, logits_BV, slots_B))

    def _adapter(self, row: Running) -> int:
        return self._adapters.get(row.request.adapter or "", 0)

    # ------------------------------------------------------------------ what runs

    def _launch(self, rows: list[Running], *, ahead: bool = False) -> Launched | None:
        """One token for each of ``rows``. ``ahead``: their newest is not known here yet."""
        rows = self._with_pages([row for row in rows if not row.ended], 1 + ahead)
        if not rows:
            return None
        slots = [row.slot for row in rows]
        longest = max(len(row.ids) + ahead for row in rows)
        logits_BV, slots_B = self._steps.scores(slots, longest)
        for row in rows:
            row.filled += 1
        return self._drawn(rows, logits_BV, slots_B)

    def _with_pages(self, rows: list[Running], more: int) -> list[Running]:
        """``rows``, each with pages for its tokens; without those that had to be put back for others."""
        for row in rows:
            if row.slot < 0:
                continue
            had = len(row.held.pages)
            while not self._pages.extend(row.held, len(row.ids) + more - 1):
                self._put_back(self._running[-1])
                if row.slot < 0:
                    break
            else:
                if len(row.held.pages) > had:
                    self._steps.hold(row.slot, row.held.pages[had:], had)
        return [row for row in rows if row.slot >= 0]

    def _may_go_on(self, launched: Launched) -> bool:
        """Whether the step after ``launched`` may be launched before that is looked at."""
        if self._waiting and self._slots:
            return False
        return self._pages.free >= len(launched.rows) and all(
            not row.ended
            and row.request.grammar is None
            and row.replied + 1 < row.room
            and not (self._border and len(row.ids) + 1 > self._border and not row.long)
            for row in launched.rows
        )

    def _put_back(self, row: Running) -> None:
        """Let go of what ``row`` holds; it waits, first of all, and is computed anew."""
        self._leave(row)
        row.filled, row.ready = 0, False
        self._waiting.appendleft(row)

    # ------------------------------------------------------------------ what is drawn

    def _drawn(self, rows: list[Running], logits_BV: Tensor, slots_B: Tensor) -> Launched:
        wants = [row.request for row in rows]
        draws = self._drawer.draw(
            logits_BV,
            slots_B,
            [row.slot for row in rows],
            mask=self._allowed(rows),
            top=max(request.top for request in wants),
            logprobs=any(request.logprobs for request in wants),
        )
        self._steps.took(slots_B, draws.ids_B)
        return Launched(rows, *self._sent_back(draws))

    def _allowed(self, rows: list[Running]) -> Tensor | None:
        mask_BW = allowed(rows, self._decoder.config.vocab_size)
        if mask_BW is None or not self._ahead:
            return mask_BW
        return mask_BW.pin_memory().to(self._decoder.device, non_blocking=True)

    def _sent_back(self, draws: Draws) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """What was drawn, on the host once the event is reached."""
        found = [draws.ids_B, draws.finite_B, draws.logprob_B, draws.top_ids_BN, draws.top_logprobs_BN]
        there = [tensor for tensor in found if tensor is not None]
        if not self._ahead:
            return there, None
        back = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in there]
        done = torch.cuda.Event()
        done.record()
        return back, done

    def _collect(self) -> list[Event]:
        launched, self._launched = self._launched, None
        return self._told(launched) if launched is not None else []

    def _told(self, launched: Launched) -> list[Event]:
        """What a step drew, as events; rows that it ended leave."""
        if launched.done is not None:
            launched.done.synchronize()
        ids, finite, *more = [tensor.tolist() for tensor in launched.on_host]
        events: list[Event] = []
        for place, row in enumerate(launched.rows):
            if row.ended:
                continue
            if not finite[place]:
                self._end(row)
                events.append(Event(row.number, error=NOT_FINITE))
                continue
            events.append(self._event(row, int(ids[place]), drawn_by(row.request, int(ids[place]), more, place)))
        return events

    def _event(self, row: Running, token_id: int, drawn: Drawn) -> Event:
        request, cached = row.request, 0 if row.told else row.cached
        row.told = True
        if token_id in request.stop_ids:
            self._end(row)
            return Event(row.number, finish="stop", stop_id=token_id, cached=cached)
        if request.grammar is not None:
            request.grammar.accept(token_id)
        row.ids.append(token_id)
        if len(row.ids) % PAGE == 1 and row.slot >= 0:
            self._pages.fill(row.held, row.ids[:-1], self._kind(row))
        if row.replied == row.room:
            self._end(row)
            return Event(row.number, drawn, finish="length", cached=cached)
        if self._border and self._is_long(row) and not row.long and row.slot >= 0:
            # From here on all of it is turned otherwise: what the cache holds is of no use.
            self._put_back(row)
        return Event(row.number, drawn, cached=cached)

    def _end(self, row: Running) -> None:
        row.ended = True
        self._known.pop(row.number, None)
        if row.slot >= 0:
            self._leave(row)
        else:
            self._waiting.remove(row)

    def _leave(self, row: Running) -> None:
        """Free slot and pages."""
        self._pages.release(row.held)
        self._drawer.free(row.slot)
        self._slots.append(row.slot)
        self._running.remove(row)
        row.slot = -1
