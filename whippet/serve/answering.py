"""From the worker's thread to the event loop: the events of all replies to one HTTP request, as they come.

The worker wakes the loop once for all the tokens of a step, not once for each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Self

from whippet.infer.requests import Event, Request
from whippet.infer.worker import Closed, Full, Refused, Worker
from whippet.serve.errors import ApiError, bad

Arrived = tuple[int, Event]
"""The index of a reply among those of its HTTP request, and what happened to it."""


class Bridge:
    """Carries events from the worker's thread into queues of the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[asyncio.Queue[Arrived], Arrived]] = deque()
        self._due = False

    def post(self, inbox: asyncio.Queue[Arrived], index: int, event: Event) -> None:
        """Called in the worker's thread."""
        self._events.append((inbox, (index, event)))
        if not self._due:
            self._due = True
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Cleared first: what is posted from here on is either seen below or calls anew.
        self._due = False
        while self._events:
            inbox, arrived = self._events.popleft()
            inbox.put_nowait(arrived)


class Answer:
    """The requests of one HTTP request in the engine. Leaving it (``with``) ends those that are still answered."""

    def __init__(self, worker: Worker, bridge: Bridge, requests: Sequence[Request]) -> None:
        """Submit ``requests``; ApiError 429 if there is no room for all of them."""
        self._worker = worker
        self._inbox: asyncio.Queue[Arrived] = asyncio.Queue()
        self._numbers: dict[int, int] = {}
        try:
            for index, request in enumerate(requests):
                post = partial(bridge.post, self._inbox, index)
                self._numbers[index] = worker.submit(request, post)
        except Full as error:
            self.cancel()
            raise ApiError(429, f"the server is busy: {error}; try again later", code="queue_full") from error
        except Closed as error:
            self.cancel()
            raise ApiError(503, str(error), code="closed") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    async def events(self) -> list[Arrived]:
        """What has come since this was called last; waits for something to come. ApiError if a reply failed."""
        arrived = [await self._inbox.get()]
        while not self._inbox.empty():
            arrived.append(self._inbox.get_nowait())
        for index, event in arrived:
            if event.last:
                self._numbers.pop(index, None)
            if isinstance(event, Refused):
                raise bad(str(event.error))
            if event.error is not None:
                raise ApiError(500, f"the reply failed: {event.error}", code="engine_error")
        return arrived

    def end(self, index: int) -> None:
        """This reply is complete: a stop text has come."""
        number = self._numbers.pop(index, None)
        if number is not None:
            self._worker.cancel(number)

    def cancel(self) -> None:
        """End whatever is still answered."""
        for index in list(self._numbers):
            self.end(index)
