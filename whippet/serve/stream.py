"""A reply as server-sent events, and the watch for clients that leave.

Source of the format: the HTML standard, "Server-sent events"; ``data: [DONE]`` is OpenAI's end mark.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from whippet.serve.answering import Answer, Arrived
from whippet.serve.body import ClientGone
from whippet.serve.errors import ApiError
from whippet.serve.fields import Json
from whippet.serve.shape import Shape

DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
"""The last asks a proxy to hand on what it gets at once."""
Made = TypeVar("Made")


def frame(values: Iterable[Json]) -> bytes:
    """One event each, as bytes."""
    return b"".join(
        b"data: " + json.dumps(v, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n" for v in values
    )


async def while_connected(request: Request, work: Awaitable[Made]) -> Made:
    """What ``work`` returns; ClientGone, and the work ended, if the client closes the connection before that. The body
    must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        with suppress(asyncio.CancelledError, ApiError, ClientGone):
            await working


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response (an ASGI application) that sends a shape's chunks while the engine draws. When it is over, for any
    reason, the requests of the engine are ended. ``on_end`` is called when it ends well."""

    def __init__(
        self, request: Request, shape: Shape, answer: Answer, first: list[Arrived], on_end: Callable[[], None]
    ) -> None:
        self._request, self._shape, self._answer, self._first, self._on_end = request, shape, answer, first, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answer, suppress(ClientGone):
            await while_connected(self._request, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async for data in self._frames():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _frames(self) -> AsyncIterator[bytes]:
        shape, arrived = self._shape, self._first
        try:
            while True:
                data = frame(shape.chunks(self._answer, arrived))
                if data:
                    yield data
                if shape.complete:
                    break
                arrived = await self._answer.events()
        except ApiError as error:
            # The status has long been sent: clients look for an error among the events.
            yield frame([error.body()])
            return
        self._on_end()
        yield frame(shape.last()) + DONE
