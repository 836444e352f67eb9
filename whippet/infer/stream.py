"""One reply as it is made: iterate over its text, then read what it took.

Comes in: a decoder, the prompt's ids, how to sample. Goes out: pieces of text, then counts, seconds and the reason of
the end. Iteration may be broken off; what was made so far stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Self

from whippet.chat.tokenizer import Tokenizer
from whippet.infer.dense import dense
from whippet.infer.engine import Engine, engine_for
from whippet.infer.requests import Finish, Request
from whippet.infer.room import room_for
from whippet.infer.sampling import Sampling
from whippet.infer.stopping import ReplyText
from whippet.model.decoder import Decoder


class Stream:
    """The reply to one prompt.

    prompt_ids, ids: tokens of the prompt, and of the reply so far. finish: ``stop`` or ``length``, None while the
    reply grows or if it was broken off. stop_id: the token that ended it, if one did.
    first_seconds: time to the first token; seconds: time to the newest.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        stop_ids: frozenset[int],
        engine: Engine | None = None,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self.stop_id: int | None = None
        self.first_seconds = self.seconds = 0.0
        self._decoder = decoder
        self._text = ReplyText(tokenizer, sampling.stop, self.prompt_ids)
        request = Request(tuple(self.prompt_ids), sampling, stop_ids)
        # What can never be answered is refused here, before anybody iterates.
        need = len(self.prompt_ids) + room_for(self.prompt_ids, sampling, decoder.config)
        self._engine = engine if engine is not None else engine_for(decoder, [need])
        self._request = request
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def drain(self) -> Self:
        """Run to the end; return the finished stream."""
        for _ in self:
            pass
        return self

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self._text.text

    @property
    def cut(self) -> bool:
        """Whether a stop text ended the reply; the text then lacks it, while ``ids`` hold its tokens."""
        return self._text.stopped

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding, reading the prompt left out; 0 if fewer than two tokens came."""
        span = self.seconds - self.first_seconds
        return (len(self.ids) - 1) / span if len(self.ids) > 1 and span > 0 else 0.0

    def _run(self) -> Iterator[str]:
        start = time.perf_counter()
        number = self._engine.ask(self._request)
        try:
            with dense(self._decoder):
                while self.finish is None:
                    event = self._engine.next(number)
                    self.seconds = time.perf_counter() - start
                    self.first_seconds = self.first_seconds or self.seconds
                    self.finish, self.stop_id = event.finish, event.stop_id
                    piece = ""
                    if event.drawn is not None:
                        self.ids.append(event.drawn.id)
                        piece = self._text.push(event.drawn.id)
                    if self._text.stopped:
                        self.finish, self.stop_id = "stop", None
                    if piece:
                        yield piece
        finally:
            self._engine.drop(number)
        rest = self._text.close()
        if rest:
            yield rest
