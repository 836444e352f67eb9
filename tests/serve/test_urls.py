"""No URL in a request is ever opened: an audit hook listens while 50 forms of them are tried."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator

import pytest
from helpers_serve import Running, running, scripted

from whippet.infer.model import Model

URLS = [
    "http://127.0.0.1/", "http://127.0.0.1:22/", "http://localhost/", "http://localhost:8000/health", "http://0.0.0.0/",
    "http://0/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/", "http://017700000001/",
    "http://0177.0.0.1/", "http://127.1/", "http://127.0.1/", "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/",
    "http://[0:0:0:0:0:ffff:7f00:1]/", "http://[fe80::1%25lo]/", "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/", "http://metadata.google.internal/", "http://2852039166/", "http://10.0.0.1/",
    "http://192.168.0.1/", "http://172.16.0.1/", "http://example.org/a.png", "https://example.org/a.png",
    "HTTP://EXAMPLE.ORG/", "hTTps://example.org/", "//example.org/a.png", "/etc/passwd", "file:///etc/passwd",
    "FILE:///etc/passwd", "file://localhost/etc/passwd", "ftp://example.org/", "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/stats", "ldap://127.0.0.1/", "jar:http://example.org!/", "netdoc:///etc/passwd",
    "unix:///var/run/docker.sock", "http://user@127.0.0.1/", "http://example.org@127.0.0.1/",
    "http://127.0.0.1#@example.org/", "http://example.org\\@127.0.0.1/", "http://127.0.0.1\t/", " http://127.0.0.1/",
    "http://１２７.０.０.１/", "http://ⓛocalhost/", "http://localtest.me/", "http://127.0.0.1.nip.io/",
    "http://example.org/redirect?to=http://127.0.0.1/", "javascript:alert(1)", "blob:http://example.org/x",
    "about:blank", "",
]  # fmt: skip
DATA = ["data:image/png;base64,iVBORw0KGgo=", "DATA:image/png,x", "data:text/html,<script>", "data:"]
REACH = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "subprocess.Popen", "open")


@pytest.fixture(scope="module")
def heard(tiny: Model) -> Iterator[tuple[Running, list[str]]]:
    """A server, and what its threads open while ``listening`` is in the list."""
    events: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in REACH and events and events[0] == "listening":
            events.append(f"{event} {arguments[:2]!r}")

    sys.addaudithook(hook)  # for good: it cannot be taken away, but it falls silent
    with running(scripted(tiny, "hello")) as made:
        yield made, events
    events.clear()


def parts(url: str) -> list[object]:
    """The ways in which a request may hold a URL that somebody could fetch."""
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "file", "file": {"file_data": url}},
        {"type": "video_url", "video_url": {"url": url}},
    ]


def test_no_url_is_fetched(heard: tuple[Running, list[str]]) -> None:
    made, events = heard
    assert len(URLS) >= 50
    connection = made.socket()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        events.append("listening")
        for url in URLS + DATA:
            for place, part in enumerate(parts(url)):
                # Through one open connection, so that the client itself is not heard.
                link = http.client.HTTPConnection("127.0.0.1", made.port)
                link.sock = connection
                asked = {"model": "model", "messages": [{"role": "user", "content": [part]}]}
                link.request("POST", "/v1/chat/completions", json.dumps(asked), {"content-type": "application/json"})
                response = link.getresponse()
                told = json.loads(response.read())["error"]
                assert response.status == 400, url
                if place < 2:
                    wanted = "takes text only, and no images" if url in DATA else "no URL is ever fetched"
                    assert wanted in told["message"] and told["param"].startswith("messages[0].content[0].image_url")
                else:
                    assert "takes text only" in told["message"]
        assert events == ["listening"]
        events.clear()


def test_the_hook_hears(heard: tuple[Running, list[str]]) -> None:
    made, events = heard
    events.append("listening")
    made.ask("GET", "/health")
    assert any(event.startswith("socket.connect") for event in events)
    events.clear()


def test_a_text_may_speak_of_urls(heard: tuple[Running, list[str]]) -> None:
    made, _ = heard
    parts = [{"type": "text", "text": "see http://127.0.0.1/ and "}, {"type": "text", "text": "file:///etc/passwd"}]
    assert (
        made.post("/v1/chat/completions", {"model": "model", "messages": [{"role": "user", "content": parts}]})[0]
        == 200
    )
