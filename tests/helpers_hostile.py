"""Requests that a server should survive: malformed, oversized, contradictory, broken off. Drawn from a seed."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PATHS = (CHAT, TEXT)
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
VALID: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "tiny", "messages": [{"role": "user", "content": "What is 3 + 4?"}], "max_tokens": 4, "temperature": 0,
        "tools": [TOOL], "tool_choice": "auto", "stop": ["x"], "n": 1, "seed": 1, "logit_bias": {"5": 1},
        "stream": False, "logprobs": True, "top_logprobs": 2, "top_p": 0.9, "response_format": {"type": "text"},
    },
    TEXT: {"model": "tiny", "prompt": "Sort", "max_tokens": 4, "temperature": 0, "n": 1, "stop": "x", "logprobs": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    """Bytes for a new connection. ``wrong``: no reading of them is a request that could be answered."""

    kind: str
    data: bytes
    wrong: bool = True
    leave: bool = False
    """Whether the client goes away without waiting."""


def value(draw: random.Random, depth: int = 0) -> Any:
    """Some JSON, of the sorts that break programs."""
    sorts: list[Callable[[], Any]] = [
        lambda: None, lambda: draw.choice((True, False)), lambda: draw.randint(-5, 5),
        lambda: draw.choice((2**31, 2**63, -(2**63) - 1, 10**30, -(10**300))),
        lambda: draw.choice((0.5, -0.0, 1e308, -1e-320, 1.5e10)), lambda: words(draw, draw.randint(0, 40)),
        lambda: draw.choice(("", "\0", "\u202e", "é" * 200, "<|end|>", "{{ 7 * 7 }}", "'; DROP", "../../etc/passwd",
                             "http://127.0.0.1/", "\r\nx: y", "﷽" * 50, "👩‍👩‍👧" * 9, "9" * 400)),
    ]  # fmt: skip
    if depth < 3:
        sorts += [
            lambda: [value(draw, depth + 1) for _ in range(draw.randint(0, 4))],
            lambda: {words(draw, draw.randint(0, 8)): value(draw, depth + 1) for _ in range(draw.randint(0, 4))},
        ]
    return draw.choice(sorts)()


def words(draw: random.Random, length: int) -> str:
    return "".join(draw.choice(string.printable + "éß日🐕\u0301") for _ in range(length))


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A whole request; the connection ends with it."""
    own = {header.partition(":")[0].lower() for header in headers}
    usual = ("host: 127.0.0.1", "content-type: application/json", f"content-length: {len(body)}", "connection: close")
    lines = [f"POST {path} HTTP/1.1", *headers, *(one for one in usual if one.partition(":")[0] not in own)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def mutated(draw: random.Random) -> Hostile:
    """A good request with a field or two changed at random; it may well be good still."""
    path = draw.choice(PATHS)
    body = json.loads(json.dumps(VALID[path]))
    for _ in range(draw.randint(1, 2)):
        place: Any = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw.choice(keys) if keys else None
            if key is None or not isinstance(place[key], dict | list) or draw.random() < 0.5:
                break
            place = place[key]
        if isinstance(place, dict) and (key is None or draw.random() < 0.2):
            place[draw.choice(("functions", "x", "best_of", "suffix", "echo", words(draw, 6)))] = value(draw)
        elif key is not None and draw.random() < 0.15:
            del place[key]
        elif key is not None:
            place[key] = value(draw)
    return Hostile("mutated", post(path, json.dumps(body).encode()), wrong=False)


def unknown(draw: random.Random) -> Hostile:
    path = draw.choice(PATHS)
    body = VALID[path] | {draw.choice(("functions", "web_search_options", "suffix_", "x" * 999, "")): value(draw) or 1}
    return Hostile("unknown field", post(path, json.dumps(body).encode()))


def out_of_range(draw: random.Random) -> Hostile:
    wrong = {
        "n": (0, -1, 65, 10**9, 2**63, 10**300, 1.5, "1", True), "max_tokens": (0, -1, 2**21, 1e300, "9"),
        "temperature": (-1, 2.01, 1e308, "0"), "top_p": (0, -1, 1.01), "seed": (2**63, -(2**63) - 1, 0.5),
        "logit_bias": ({"x": 1}, {"1": 1e9}, {str(10**12): 1}, [1], {str(2**30): 1}),
        "stop": ("", [""], ["x"] * 99, 5, [None]), "top_k": (-1, 2**40), "presence_penalty": (9, -9, "x"),
    }  # fmt: skip
    path, key = draw.choice(PATHS), draw.choice(list(wrong))
    return Hostile("out of range", post(path, json.dumps(VALID[path] | {key: draw.choice(wrong[key])}).encode()))


def no_json(draw: random.Random) -> Hostile:
    good = json.dumps(VALID[CHAT]).encode()
    body = draw.choice(
        (
            good[: draw.randrange(len(good))], b"\xff\xfe" + good, draw.randbytes(draw.randint(0, 300)), b"[" * 9999,
            b'{"a":' * 9999, good.replace(b'"tiny"', b'"\xc3\x28"'), good.replace(b'"tiny"', b'"\\ud800"'),
            good.replace(b'"n": 1', b'"n": NaN'), good.replace(b'"n": 1', b'"n": ' + b"9" * 5000), good + good,
            b"model=tiny&prompt=x", b"<xml/>", b"null", b'""', good.decode().encode("utf-16"), b"\0" * 99,
        )
    )  # fmt: skip
    return Hostile("no JSON", post(draw.choice(PATHS), body))


def head(draw: random.Random) -> Hostile:
    good = json.dumps(VALID[CHAT]).encode()
    get, own, end = b"GET /health HTTP/1.1\r\n", b"host: 127.0.0.1\r\n", b"connection: close\r\n\r\n"
    data = draw.choice(
        (
            draw.randbytes(draw.randint(1, 400)) + b"\r\n\r\n", b"\r\n\r\n\r\n", b"GET / HTTP/9.9\r\n" + own + end,
            get + own + b"host: evil.example\r\n" + end, get + end, get + b"host: evil\r\n" + end,
            b"GET /" + b"a" * draw.choice((3000, 100_000)) + b" HTTP/1.1\r\n" + own + end,
            get + own + b"x y: z\r\n" + end,
            post(CHAT, good, "content-type: text/plain"), post(CHAT, good, "content-encoding: gzip"),
            post(CHAT, good, "content-length: -1"), post(CHAT, good, "content-length: 99999999999999999999"),
            post(CHAT, good, "content-length: 10", "content-length: 20"), post(CHAT, good, "content-length: 5000000"),
            post(CHAT, good, "origin: http://evil.example"), post(CHAT, b"zz\r\n" + good, "transfer-encoding: chunked"),
            post(CHAT, good, "host: 127.0.0.1.evil.example"), b"TRACE / HTTP/1.1\r\n" + own + end,
            b"CONNECT evil.example:80 HTTP/1.1\r\nhost: evil.example:80\r\n" + end,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(100) + b"\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        )
    )  # fmt: skip
    return Hostile("head", data)


def path(draw: random.Random) -> Hostile:
    where = draw.choice(
        (
            "/", "//", "/v1/models/" + "a" * 2000, "/v1/../etc/passwd", "/%00", "/v1/models/%2e%2e%2f", "/docs", "*",
            "/v1/embeddings", "/v1/chat/completions/", "/static/../../x", "/v1/models/\\..\\x",
        )
    )  # fmt: skip
    verb = draw.choice(("GET", "DELETE", "PUT", "PATCH", "OPTIONS", "BREW", "POST"))
    return Hostile("path", f"{verb} {where} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())


def too_large(draw: random.Random) -> Hostile:
    size = draw.choice((4 * 2**20 + 1, 6 * 2**20))
    return Hostile("too large", post(draw.choice(PATHS), b'{"model": "' + b"x" * size))


def too_long(draw: random.Random) -> Hostile:
    body = draw.choice(
        (
            VALID[CHAT] | {"messages": [{"role": "user", "content": "dog " * draw.choice((2000, 40_000))}]},
            VALID[CHAT] | {"messages": [{"role": "user", "content": "x"}] * draw.choice((1500, 5000))},
            VALID[CHAT] | {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 2000}]},
            VALID[CHAT] | {"tools": [TOOL] * 200}, VALID[CHAT] | {"metadata": {str(i): "x" for i in range(999)}},
        )
    )  # fmt: skip
    return Hostile("too long", post(CHAT, json.dumps(body).encode()))


def left(draw: random.Random) -> Hostile:
    """The client goes: within the head, the body, or the reply."""
    where = draw.choice(PATHS)
    whole = post(where, json.dumps(VALID[where] | {"stream": draw.random() < 0.7, "max_tokens": 300}).encode())
    return Hostile("left", whole[: draw.choice((draw.randrange(1, len(whole)), len(whole)))], wrong=False, leave=True)


SORTS = (mutated, mutated, mutated, unknown, out_of_range, no_json, head, path, too_long, left)


def hostile(draw: random.Random) -> Hostile:
    """One of all sorts."""
    return too_large(draw) if draw.random() < 0.005 else draw.choice(SORTS)(draw)
