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
from whippet.infer.engine import Finish, Generation
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
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self.stop_id: int | None = None
        self.first_seconds = self.seconds = 0.0
        self._decoder = decoder
        self._text = ReplyText(tokenizer, sampling.stop, self.prompt_ids)
        self._generation = Generation(decoder, [self.prompt_ids], [sampling], stop_ids)
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
        with dense(self._decoder):
            while self._generation.active:
                drawn = self._generation.step()
                self.seconds = time.perf_counter() - start
                self.first_seconds = self.first_seconds or self.seconds
                for row, token_id in drawn:
                    self.ids.append(token_id)
                    piece = self._text.push(token_id)
                    if self._text.stopped:
                        self._generation.end(row)
                    if piece:
                        yield piece
        reply = self._generation.reply(0)
        self.finish, self.stop_id = reply.finish, reply.stop_id
        rest = self._text.close()
        if rest:
            yield rest
