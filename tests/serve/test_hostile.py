"""Requests that are malformed, oversized or broken off: a refusal for each, the server none the worse.

The long versions run against ``whippet serve`` as a program of its own, whose memory they watch.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers_hostile import CHAT, VALID, Hostile, hostile, post
from helpers_infer import CHAT as CHATML
from helpers_infer import write_checkpoint
from helpers_serve import Program, Running, program, running, scripted

import whippet
from whippet.demo import MODEL
from whippet.infer.model import Model
from whippet.serve import body, connections

HANG = 30.0
PATIENCE = 1.5


def send(port: int, one: Hostile) -> int | None:
    """The status that came back; None if the server just closed, or the client left. TimeoutError after 30 seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as made:
        back = b""
        try:
            made.sendall(one.data)
            if one.leave:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # away with a reset
                return None
            try:
                back = made.recv(65536)
            except TimeoutError:
                made.shutdown(socket.SHUT_WR)  # it may wait for the rest of a request that has none
                made.settimeout(HANG)
            while chunk := made.recv(65536):
                back += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed before all of it was sent or read
        return int(back.split()[1]) if back.startswith(b"HTTP/1.1 ") else None


def storm(port: int, number: int, seed: int) -> Counter[tuple[str, int | None]]:
    """So many hostile requests from four threads; how often each kind got each status."""
    made = [hostile(random.Random(f"{seed} {place}")) for place in range(number)]
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda one: send(port, one), made))
    for one, status in zip(made, statuses, strict=True):
        assert status is None or status < 500, (status, one)
        assert not (one.wrong and status is not None and status < 400), (status, one)
    return Counter((one.kind, status) for one, status in zip(made, statuses, strict=True))


def loris(port: int, stop: threading.Event) -> list[socket.socket]:
    """Connections that send a byte now and then, of a head or of a body."""
    whole = post(CHAT, json.dumps(VALID[CHAT]).encode())
    held = [socket.create_connection(("127.0.0.1", port), timeout=HANG) for _ in range(20)]
    for place, one in enumerate(held):
        one.sendall(whole[: 30 if place % 2 else -20])

    def drip() -> None:
        while not stop.wait(0.5):
            for one in held:
                try:
                    one.send(b"x")
                except OSError:
                    continue  # cut off, as it should be

    threading.Thread(target=drip, daemon=True).start()
    return held


def test_hostile_requests(server: Running) -> None:
    counts = storm(server.port, 300, seed=0)
    assert {kind for kind, _ in counts} >= {"mutated", "no JSON", "head", "path", "too long", "left", "unknown field"}
    assert sum(count for (_, status), count in counts.items() if status is not None and 400 <= status < 500) > 150
    assert server.idle()
    status, reply = server.chat()
    assert status == 200 and reply["choices"][0]["message"]["content"] == "37 + 45 = 82"


def test_the_storm_can_fail(tiny: Model) -> None:
    """A server that breaks is found out."""

    def broken(request: object) -> list[int]:
        raise RuntimeError("broken")

    with running(scripted(tiny, broken, name="tiny")) as made, pytest.raises(AssertionError, match="500"):
        storm(made.port, 60, seed=0)


def test_a_head_that_never_ends_is_cut_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    started = time.monotonic()
    with server.socket() as slow, server.socket() as silent:
        closed = False
        for letter in "GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + "y" * 200:
            try:
                slow.sendall(letter.encode())
            except OSError:
                closed = True
                break
            time.sleep(0.02)
        assert closed and time.monotonic() - started < 5
        assert silent.recv(1) == b""
    assert server.ask("GET", "/health")[0] == 200


def test_a_body_that_never_ends_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SECONDS", 0.3)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.6)
    whole = post(CHAT, json.dumps(VALID[CHAT]).encode())
    back = server.raw(whole[:-10])
    assert back.startswith(b"HTTP/1.1 408") and b"did not arrive within" in back


def test_a_body_that_is_too_large_is_refused(server: Running) -> None:
    """By its size as it comes, told beforehand or not; by what is told, where that is out of all proportion."""
    large = b'{"model": "' + b"x" * (body.MAX_BYTES + 1)
    assert server.raw(post(CHAT, large)).startswith(b"HTTP/1.1 413")
    assert server.raw(post(CHAT, b"", f"content-length: {10**12}")).startswith(b"HTTP/1.1 413")
    part = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = post(CHAT, b"", "content-length:", "transfer-encoding: chunked").replace(b"content-length:\r\n", b"")
    assert server.raw(head + part * (body.MAX_BYTES // 0x10000 + 1) + b"0\r\n\r\n").startswith(b"HTTP/1.1 413")
    with server.socket() as endless:
        endless.sendall(head)
        with pytest.raises(OSError):
            for _ in range(100 * body.MAX_BYTES // 0x10000):
                endless.sendall(part)


def test_a_reader_that_stalls_is_cut_off(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.5)
    endless = scripted(tiny, lambda request: [tiny.tokenizer.encode("dog")[0]] * 10**6)
    endless.worker._batcher.pause = 0.001  # type: ignore[attr-defined]
    with running(endless, send_buffer=4096) as made:
        asked = {"model": "model", "messages": VALID[CHAT]["messages"], "logprobs": True, "stream": True}
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", made.port))
            stalled.sendall(post(CHAT, json.dumps(asked).encode()))
            deadline = time.monotonic() + 20
            while not made.served.worker.figures().running:
                assert time.monotonic() < deadline
            assert made.idle(20)
        assert made.ask("GET", "/health")[0] == 200


def test_no_more_connections_than_may_be_open(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    with running(scripted(tiny, "hello")) as made:
        held = [made.socket() for _ in range(5)]
        time.sleep(0.1)
        assert made.raw(b"").startswith(b"HTTP/1.1 429")
        held.pop().close()
        time.sleep(0.1)
        assert made.ask("GET", "/health")[0] == 200
        for one in held:
            one.close()


def test_a_full_queue_is_429(tiny: Model) -> None:
    served = scripted(tiny, "hello", max_waiting=0)
    with running(served) as made:
        engine = served.worker._batcher
        engine.gate.clear()  # type: ignore[attr-defined]
        with ThreadPoolExecutor(64) as pool:
            asked = [pool.submit(made.chat) for _ in range(63)]
            deadline = time.monotonic() + 10
            while served.worker.figures().requests < 63:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            two = {"model": "model", "messages": VALID[CHAT]["messages"], "n": 2}
            status, headers, raw = made.ask("POST", CHAT, two)
            assert status == 429 and headers["retry-after"] == "1"
            assert json.loads(raw)["error"]["type"] == "rate_limit_error"
            assert len(served.worker._open) == 63, "the one of the two that was taken is ended"
            engine.gate.set()  # type: ignore[attr-defined]
            assert all(one.result()[0] == 200 for one in asked)
        assert made.chat()[0] == 200


def test_a_stop_text_ends_the_reply_in_the_engine_too(tiny: Model) -> None:
    """At once, while others of the same request go on."""
    words = {1: tiny.tokenizer.encode("one two three "), 2: tiny.tokenizer.encode("dog ")}
    endless = scripted(tiny, lambda request: words[request.sampling.seed or 0] * 10**5)
    endless.worker._batcher.pause = 0.001  # type: ignore[attr-defined]
    asked = {"model": "model", "messages": VALID[CHAT]["messages"], "stop": "three", "n": 2, "seed": 1, "stream": True}
    with running(endless) as made:
        with made.socket() as link:
            link.sendall(post(CHAT, json.dumps(asked).encode()))
            deadline = time.monotonic() + 10
            while endless.worker.figures().cancelled < 1:
                assert time.monotonic() < deadline
            assert endless.worker.figures().running == 1
        assert made.idle(5)
    assert not endless.worker.figures().healthy, "the worker ends with the server"


def test_paths_are_not_guessed(server: Running) -> None:
    assert server.ask("GET", "/health/")[0] == 404 and server.ask("GET", "/v1/models/")[0] == 404


@pytest.mark.parametrize("work", ["{% for j in range(100000) %}{% endfor %}", "{{ 'x' * 3000000 }}"])
def test_a_template_that_never_ends_is_stopped(tmp_path: Path, work: str) -> None:
    """One that is harmless until a message makes it work."""
    template = (
        "{% if messages[0].content == 'loop' %}{% for i in range(99999) %}" + work + "{% endfor %}{% endif %}" + CHATML
    )
    model = whippet.load(write_checkpoint(tmp_path / "m", template=template), base="fp32", device="cpu")
    with running(scripted(model, "hello")) as made:
        started = time.monotonic()
        status, told = made.chat("loop")
        assert status == 400 and "was stopped" in told["error"]["message"] and time.monotonic() - started < 2
        assert made.chat("hi")[0] == 200


def leave_mid_stream(port: int, draw: random.Random) -> bool:
    """Ask for a long reply, read some of it and go; whether some of it had come."""
    asked = {
        "model": "tiny",
        "stream": True,
        "messages": [{"role": "user", "content": "zebra"}],
        "n": draw.randint(1, 3),
    }
    asked |= {"logit_bias": {str(stop): -100 for stop in range(8)}, "max_tokens": 900, "temperature": 1.5}
    with socket.create_connection(("127.0.0.1", port), timeout=HANG) as made:
        made.sendall(post(CHAT, json.dumps(asked).encode()))
        got = b""
        while b"chat.completion.chunk" not in got:
            part = made.recv(4096)
            if not part:
                return False
            got += part
        for _ in range(draw.randint(0, 3)):
            made.recv(512)
        if draw.random() < 0.5:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return True


def test_clients_that_leave_free_their_slots(server: Running) -> None:
    before = server.served.worker.figures()
    with ThreadPoolExecutor(4) as pool:
        draws = [random.Random(place) for place in range(12)]
        assert all(pool.map(lambda draw: leave_mid_stream(server.port, draw), draws))
    assert server.idle()
    after = server.served.worker.figures()
    assert after.cancelled - before.cancelled >= 12 and after.failed == before.failed
    assert server.served.worker._jobs == {} and server.served.worker._open == {}
    assert server.chat()[0] == 200


def test_a_client_that_leaves_before_the_whole_reply(server: Running) -> None:
    before = server.served.worker.figures().cancelled
    asked = {"model": "tiny", "messages": VALID[CHAT]["messages"], "max_tokens": 900, "n": 2}
    asked["logit_bias"] = {str(stop): -100 for stop in range(8)}
    with server.socket() as made:
        made.sendall(post(CHAT, json.dumps(asked).encode()))
        deadline = time.monotonic() + 10
        while server.served.worker.figures().running < 2:
            assert time.monotonic() < deadline
    assert server.idle(5) and server.served.worker.figures().cancelled == before + 2


def settled(made: Program, work: Callable[[int], object], rounds: int) -> list[int]:
    """Memory after each of ``rounds`` calls of ``work``."""
    held = []
    for place in range(rounds):
        work(place)
        assert made.idle()
        held.append(made.memory())
    return held


@pytest.mark.long
def test_ten_thousand_hostile_requests() -> None:
    with program(str(MODEL), "--max-rows", "16") as made:
        stop = threading.Event()
        slow = loris(made.port, stop)
        counts: Counter[tuple[str, int | None]] = Counter()
        held = settled(made, lambda place: counts.update(storm(made.port, 1000, seed=100 + place)), 11)
        stop.set()
        for one in slow:
            one.close()
        with socket.create_connection(("127.0.0.1", made.port), timeout=HANG) as link:
            link.sendall(post(CHAT, json.dumps(VALID[CHAT]).encode()))
            assert link.recv(15) == b"HTTP/1.1 200 OK"
        print(f"\n{sum(counts.values())} requests: {sorted(counts.items(), key=str)}\nmemory {held}")
        assert held[-1] < 1.05 * held[0] and made.process.poll() is None


@pytest.mark.long
def test_two_hundred_clients_that_leave() -> None:
    with program(str(MODEL), "--max-rows", "16") as made:
        draws = [random.Random(place) for place in range(200)]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda draw: leave_mid_stream(made.port, draw), draws))
        assert made.idle()
        figures = made.figures()
        print(f"\n{figures}")
        assert figures["cancelled_total"] >= 200 and figures["failed_total"] == 0
