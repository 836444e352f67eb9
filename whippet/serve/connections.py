"""Connections within bounds, on uvicorn: their number, the time for a request's head, and readers that stall.

uvicorn waits for ever for the head of a request (slow-loris), and for ever for a client that does not read. Here both
are cut off. What is no HTTP is refused in OpenAI's shape too.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from whippet.errors import UsageError
from whippet.serve.errors import ApiError

MAX_CONNECTIONS = 512
"""Below the 1024 files that a process may usually hold open."""
HEAD_SECONDS = 10.0
"""For the head of a request, from the connection's beginning or its first byte."""
STALL_SECONDS = 30.0
"""For a client to go on reading."""
IDLE_SECONDS = 15
"""A connection without a request is kept open for so long."""
UNSENT_BYTES = 16 * 1024
"""What may be unsent before the application is made to wait."""


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, for which nothing takes for ever but a reply that is being made."""

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= MAX_CONNECTIONS:
            transport.write(_raw(429, "as many connections are open as may; try again later"))
            transport.close()
            self.transport = transport
            return
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNSENT_BYTES)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.flow is None:
            return  # refused above
        super().data_received(data)
        if self._answering:
            self._stop_head_timer()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        if self.flow is not None:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_stall_timer()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing would wait for a client that does not read
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_raw(400, "this is no HTTP request"))
        self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        """Begin to wait for a head, if that has not begun: a byte now and then does not prolong it."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._answering:
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound and not yet listening; UsageError if the address cannot be had."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise UsageError(f"--host {host} --port {port}: {error.strerror or error}") from error
    return bound


def make_server(app: ASGIApp, *, drain: float) -> uvicorn.Server:
    """A server of ``app`` that, told to stop, lets replies end for up to ``drain`` seconds."""
    options: dict[str, Any] = {
        "http": BoundedProtocol, "ws": "none", "lifespan": "on", "loop": "asyncio", "access_log": False,
        "log_level": "error", "log_config": None, "server_header": False, "proxy_headers": False,
        "timeout_keep_alive": IDLE_SECONDS, "timeout_graceful_shutdown": max(1, round(drain)),
    }  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, **options))


def _raw(status: int, message: str) -> bytes:
    body = json.dumps(ApiError(status, message).body()).encode()
    head = f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body
