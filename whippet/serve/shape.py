"""What the replies of both routes have in common as JSON: the envelope, the counts, and the walk from events to it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from whippet.serve.answering import Answer, Arrived
from whippet.serve.errors import bad
from whippet.serve.fields import Json
from whippet.serve.replies import GrowingReply
from whippet.serve.schema import Asked
from whippet.serve.served import Prepared, Served


class Shape:
    """The replies to one HTTP request while they are made, and how a route tells of them."""

    object: ClassVar[str]
    chunk_object: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(self, asked: Asked, served: Served, prepared: Prepared) -> None:
        self.token_bytes = served.token_bytes
        self.replies = [
            GrowingReply(index, served.tokenizer, prepared.stop, request.prompt)
            for index, request in enumerate(prepared.requests)
        ]
        self._grammars = [request.grammar for request in prepared.requests]
        self._prompt_tokens, self._n = prepared.prompt_tokens, prepared.n
        self._include_usage = asked.include_usage
        self._envelope: Json = {
            "id": self.prefix + secrets.token_hex(12),
            "object": self.object,
            "created": int(time.time()),
            "model": asked.model,
        }
        self._opened: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether no reply grows any more."""
        return all(reply.finish is not None for reply in self.replies)

    def grow(self, answer: Answer, arrived: Sequence[Arrived]) -> None:
        """Take events for a reply that is told as a whole."""
        for _ in self._taken(answer, arrived):
            pass

    def chunks(self, answer: Answer, arrived: Sequence[Arrived]) -> Iterator[Json]:
        """Take events; what is to be sent because of them."""
        for reply, text in self._taken(answer, arrived):
            if reply.index not in self._opened:
                self._opened.add(reply.index)
                yield from self.opening(reply)
            if text:
                yield from self.piece(reply, text)
            if reply.finish is not None:
                yield from self.closing(reply)

    def _taken(self, answer: Answer, arrived: Sequence[Arrived]) -> Iterator[tuple[GrowingReply, str]]:
        for index, event in arrived:
            reply = self.replies[index]
            if reply.finish is None:
                text = reply.take(event)
                if reply.stopped:
                    answer.end(index)
                if reply.finish is not None:
                    self._check_grammar(index)
                yield reply, text

    def _check_grammar(self, index: int) -> None:
        """A grammar that passes its own limits ends the reply where it is: that is no answer."""
        trouble = getattr(self._grammars[index], "trouble", None)
        if trouble is not None:
            raise bad(f"the reply could not be held to its schema: {trouble}", "response_format")

    def whole(self) -> Json:
        """The reply that is told as a whole."""
        choices = [self.choice(reply) for reply in self.replies]
        return {**self._envelope, "choices": choices, "usage": self.usage()}

    def last(self) -> list[Json]:
        """What ends a stream, after the replies."""
        if not self._include_usage:
            return []
        return [{**self._envelope, "object": self.chunk_object, "choices": [], "usage": self.usage()}]

    def chunk(self, choices: list[Json]) -> Json:
        """One message of a stream."""
        made = {**self._envelope, "object": self.chunk_object, "choices": choices}
        return made | {"usage": None} if self._include_usage else made

    def usage(self) -> Json:
        """Counts of tokens: a prompt's once, however many replies it has."""
        generated = sum(reply.tokens for reply in self.replies)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": sum(reply.cached for reply in self.replies[:: self._n])},
        }

    def choice(self, reply: GrowingReply) -> Json:
        """One complete reply."""
        raise NotImplementedError

    def opening(self, reply: GrowingReply) -> list[Json]:
        """The chunks before a reply's first text."""
        raise NotImplementedError

    def piece(self, reply: GrowingReply, text: str) -> list[Json]:
        """The chunks for more of its text."""
        raise NotImplementedError

    def closing(self, reply: GrowingReply) -> list[Json]:
        """The chunks that end it."""
        raise NotImplementedError
