"""A real server on the loopback for tests, an engine that says what it is told to, and clients without manners."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from whippet.infer.model import Model
from whippet.infer.requests import Drawn, Event, Request
from whippet.infer.worker import Worker
from whippet.serve.app import make_app
from whippet.serve.connections import listen, make_server
from whippet.serve.served import Served


@dataclass
class Running:
    """A server that answers."""

    served: Served
    server: uvicorn.Server
    thread: threading.Thread
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, **options: Any) -> Any:
        """OpenAI's own client."""
        import openai

        return openai.OpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": 60} | options)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request; ``body`` is sent as JSON, bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            sent = ({"content-type": "application/json"} if raw is not None else {}) | (headers or {})
            connection.request(method, path, raw, sent)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        """Status and JSON of a reply."""
        status, _, raw = self.ask("POST", path, body, **more)
        return status, json.loads(raw)

    def chat(self, text: str = "What is 37 + 45?", **more: Any) -> tuple[int, Any]:
        """The same for one message to the model itself, greedily unless told otherwise."""
        model = next(iter(self.served.names))
        asked = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        return self.post("/v1/chat/completions", asked | more)

    def raw(self, data: bytes, *, timeout: float = 10, half_close: bool = False) -> bytes:
        """Everything that comes back for these bytes until the server closes."""
        with self.socket(timeout) as made:
            made.sendall(data)
            if half_close:
                made.shutdown(socket.SHUT_WR)
            back = b""
            while chunk := made.recv(65536):
                back += chunk
            return back

    def socket(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def idle(self, seconds: float = 10) -> bool:
        """Whether nothing runs or waits any more, within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            figures = self.served.worker.figures()
            if not figures.running and not figures.waiting:
                return True
            time.sleep(0.005)
        return False

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def running(served: Served, *, send_buffer: int | None = None, **options: Any) -> Iterator[Running]:
    """``served`` behind uvicorn on a free port of the loopback; ``options`` go to ``make_app``. ``send_buffer``: bytes
    that the system takes for a client that does not read."""
    with listen("127.0.0.1", 0) as bound:
        if send_buffer is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = make_server(make_app(served, **options), drain=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        made = Running(served, server, thread, bound.getsockname()[1])
        try:
            yield made
        finally:
            made.stop()


class Scripted:
    """An engine that answers every request with the tokens that ``script`` gives for it, one a step. While ``gate`` is
    not set it waits; every step takes ``pause`` seconds."""

    def __init__(self, script: Callable[[Request], Sequence[int]]) -> None:
        self.script, self.pause = script, 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.asked: deque[Request] = deque(maxlen=100)
        self.rows: dict[int, tuple[Request, deque[int]]] = {}
        self.number = 0
        self.cache_used = self.cache_size = 0
        self.waiting = 0

    @property
    def running(self) -> int:
        return len(self.rows)

    @property
    def busy(self) -> bool:
        return bool(self.rows)

    def add(self, request: Request) -> int:
        self.number += 1
        self.asked.append(request)
        self.rows[self.number] = (request, deque(self.script(request)))
        return self.number

    def cancel(self, number: int) -> None:
        self.rows.pop(number, None)

    def step(self) -> list[Event]:
        self.gate.wait(10)
        time.sleep(self.pause)
        events = []
        for number, (request, ids) in list(self.rows.items()):
            if not ids:
                del self.rows[number]
                events.append(Event(number, finish="stop", stop_id=min(request.stop_ids, default=None)))
            else:
                events.append(Event(number, Drawn(ids.popleft(), -0.25, ((1, -1.5), (2, -2.5))[: request.top])))
        return events


def scripted(
    model: Model, script: Callable[[Request], Sequence[int]] | str, *, name: str = "model", **options: Any
) -> Served:
    """A server that says what it is told to; a text is what every reply is."""
    told = model.tokenizer.encode(script) if isinstance(script, str) else None
    engine = Scripted(script if callable(script) else lambda request: told or [])
    return Served(model, Worker(engine, max_rows=64, **options), name=name, adapters=("other",))


def events(raw: bytes) -> list[Any]:
    """The JSON of each server-sent event; the end mark as the text it is."""
    lines = [line for line in raw.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


@dataclass
class Program:
    """``whippet serve`` as a program of its own."""

    process: subprocess.Popen[str]
    port: int
    said: list[str]

    def figures(self) -> dict[str, float]:
        """What ``/metrics`` tells, labelled ones left out."""
        raw = http_get(self.port, "/metrics").decode()
        lines = [line.split() for line in raw.splitlines() if not line.startswith("#") and "{" not in line]
        return {name.removeprefix("whippet_"): float(value) for name, value in lines}

    def idle(self, seconds: float = 30) -> bool:
        """Whether nothing runs or waits any more, within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            figures = self.figures()
            if not figures["running"] and not figures["waiting"]:
                return True
            time.sleep(0.02)
        return False

    def memory(self) -> int:
        """Bytes that the program holds."""
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)


def http_get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


@contextmanager
def program(*arguments: str) -> Iterator[Program]:
    """``whippet serve`` with these arguments, on a free port unless they name one; killed at the end."""
    command = [sys.executable, "-m", "whippet", "serve", *arguments]
    command += [] if "--port" in arguments else ["--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        said: list[str] = []
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said.append(line)
                if line.startswith("curl "):
                    break
            found = re.search(r":(\d+)/v1", "".join(said))
            assert found is not None, "".join(said)
            yield Program(process, int(found[1]), said)
        finally:
            process.kill()
