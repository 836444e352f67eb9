"""Who is answered: hosts, origins and keys, before anything else of a request is looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from helpers_serve import Running, running, scripted

from whippet.errors import UsageError
from whippet.infer.model import Model
from whippet.serve.guards import Guards, check_binding, is_loopback

KEY = "secret-key-of-the-server"
GOOD = f"Bearer {KEY}"


@pytest.fixture(scope="module")
def guarded(tiny: Model) -> Iterator[Running]:
    """A server on the loopback that wants a key and is also called whippet.test."""
    with running(scripted(tiny, "hello"), names=["whippet.test"], keys=["another", KEY]) as made:
        yield made


ASK = b'{"model": "model", "messages": [{"role": "user", "content": "x"}]}'
CHAT, MODELS, HEALTH = "/v1/chat/completions", "/v1/models", "/health"
MATRIX = [
    # host, origin, authorization, verb, path, status
    ("127.0.0.1:PORT", None, GOOD, "POST", CHAT, 200),
    ("localhost:PORT", None, GOOD, "POST", CHAT, 200),
    ("LOCALHOST", None, GOOD, "GET", MODELS, 200),
    ("[::1]:PORT", None, GOOD, "GET", MODELS, 200),
    ("127.1.2.3", None, GOOD, "GET", MODELS, 200),
    ("whippet.test", None, GOOD, "POST", CHAT, 200),
    ("127.0.0.1:PORT", "http://127.0.0.1:PORT", GOOD, "POST", CHAT, 200),
    ("whippet.test", "http://whippet.test", GOOD, "POST", CHAT, 200),
    ("127.0.0.1:PORT", None, None, "GET", HEALTH, 200),
    ("127.0.0.1:PORT", None, "bearer " + KEY, "GET", "/metrics", 200),
    ("evil.example", None, GOOD, "POST", CHAT, 403),
    ("evil.example:PORT", None, None, "GET", HEALTH, 403),
    ("127.0.0.1.evil.example", None, GOOD, "POST", CHAT, 403),
    ("localhost.", None, GOOD, "POST", CHAT, 403),
    ("localhost:PORT@evil.example", None, GOOD, "POST", CHAT, 403),
    ("192.168.1.7:PORT", None, GOOD, "POST", CHAT, 403),
    ("0.0.0.0:PORT", None, GOOD, "POST", CHAT, 403),
    ("[::ffff:8.8.8.8]", None, GOOD, "POST", CHAT, 403),
    ("", None, GOOD, "POST", CHAT, 403),
    ("127.0.0.1:PORT", "http://evil.example", GOOD, "POST", CHAT, 403),
    ("127.0.0.1:PORT", "null", GOOD, "POST", CHAT, 403),
    ("127.0.0.1:PORT", "http://127.0.0.1:1", GOOD, "POST", CHAT, 403),
    ("127.0.0.1:PORT", "http://localhost:PORT", GOOD, "POST", CHAT, 403),
    ("127.0.0.1:PORT", "https://127.0.0.1:PORT", GOOD, "POST", CHAT, 403),
    ("evil.example:PORT", "http://evil.example:PORT", GOOD, "POST", CHAT, 403),
    ("127.0.0.1:PORT", "http://evil.example", None, "OPTIONS", CHAT, 403),
    ("127.0.0.1:PORT", "http://evil.example", None, "GET", HEALTH, 403),
    ("127.0.0.1:PORT", None, None, "POST", CHAT, 401),
    ("127.0.0.1:PORT", None, "Bearer wrong", "POST", CHAT, 401),
    ("127.0.0.1:PORT", None, "Bearer " + KEY[:-1], "POST", CHAT, 401),
    ("127.0.0.1:PORT", None, "Bearer " + KEY + "x", "POST", CHAT, 401),
    ("127.0.0.1:PORT", None, "Bearer ", "POST", CHAT, 401),
    ("127.0.0.1:PORT", None, "Basic " + KEY, "POST", CHAT, 401),
    ("127.0.0.1:PORT", None, KEY, "POST", CHAT, 401),
    ("127.0.0.1:PORT", None, None, "GET", MODELS, 401),
    ("127.0.0.1:PORT", None, None, "GET", "/openapi.json", 401),
    ("127.0.0.1:PORT", None, None, "GET", "/metrics", 401),
    ("127.0.0.1:PORT", None, None, "GET", "/nothing", 401),
    ("127.0.0.1:PORT", None, GOOD, "GET", CHAT, 405),
    ("127.0.0.1:PORT", None, GOOD, "DELETE", MODELS, 405),
    ("127.0.0.1:PORT", None, GOOD, "OPTIONS", CHAT, 405),
    ("127.0.0.1:PORT", None, GOOD, "GET", "/nothing", 404),
]


@pytest.mark.parametrize(("host", "origin", "key", "verb", "path", "status"), MATRIX)
def test_the_matrix(
    guarded: Running, host: str, origin: str | None, key: str | None, verb: str, path: str, status: int
) -> None:
    given = {"host": host, "origin": origin, "authorization": key}
    headers = {name: value.replace("PORT", str(guarded.port)) for name, value in given.items() if value is not None}
    got, told, raw = guarded.ask(verb, path, ASK if verb == "POST" else None, headers)
    assert got == status
    assert not any(name.startswith("access-control") for name in told)
    if status >= 400:
        assert b'"error":{"message":' in raw and KEY.encode() not in raw
    assert ("www-authenticate" in told) == (status == 401)


@pytest.mark.parametrize("doubled", [b"host: evil.example", b"origin: http://evil.example"])
def test_a_header_that_is_given_twice_is_not_trusted(guarded: Running, doubled: bytes) -> None:
    origin = f"origin: http://127.0.0.1:{guarded.port}".encode()
    head = [b"GET /health HTTP/1.1", f"host: 127.0.0.1:{guarded.port}".encode(), origin, b"connection: close"]
    assert guarded.raw(b"\r\n".join([*head, b"", b""])).startswith(b"HTTP/1.1 200")
    assert guarded.raw(b"\r\n".join([*head, doubled, b"", b""])).split()[1] in (b"400", b"403")


def test_two_hosts_are_none() -> None:
    """h11 does not let them through; another server might."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append("let in")

    async def send(message: Any) -> None:
        heard.append(str(message.get("status", "")))

    hosts = [(b"host", b"localhost"), (b"host", b"evil.example")]
    for headers, wanted in ((hosts[:1], ["let in"]), (hosts, ["403", ""]), ([], ["403", ""])):
        scope = {"type": "http", "scheme": "http", "path": "/health", "method": "GET", "headers": headers}
        asyncio.run(Guards(app, bound="127.0.0.1")(scope, None, send))  # type: ignore[arg-type]
        assert heard == wanted
        heard.clear()


def test_no_key_is_asked_for_where_there_is_none(server: Running) -> None:
    assert server.ask("GET", "/v1/models")[0] == 200
    assert server.ask("GET", "/v1/models", headers={"authorization": "Bearer anything"})[0] == 200


def test_behind_an_address_that_others_reach_any_address_is_known_and_no_name(tiny: Model) -> None:
    with running(scripted(tiny, "hello"), bound="0.0.0.0", names=["box.lan"], keys=[KEY]) as made:
        hosts = {"10.0.0.7:8000": 200, "[fe80::1]": 200, "localhost": 200, "BOX.lan:1": 200, "evil.example": 403}
        for host, status in hosts.items():
            assert made.ask("GET", "/v1/models", headers={"host": host, "authorization": GOOD})[0] == status


@pytest.mark.parametrize(
    ("host", "safe"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
        ("::", False), ("", False), ("192.168.0.1", False), ("example.org", False), ("localhost.example.org", False),
        ("127.0.0.1.example.org", False), ("0", False), ("2130706433", False), ("0x7f000001", False),
        ("::ffff:0.0.0.0", False), ("127.1", False),
    ],
)  # fmt: skip
def test_an_address_that_others_reach_needs_a_key(host: str, safe: bool) -> None:
    assert is_loopback(host) == safe
    check_binding(host, ["key"])
    if safe:
        check_binding(host, [])
    else:
        with pytest.raises(UsageError, match="a key is needed"):
            check_binding(host, [])


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_keys_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        check_binding("127.0.0.1", [key])
