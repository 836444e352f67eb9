"""``whippet serve`` as a program: what it says, whom it refuses, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from helpers_hostile import CHAT, post
from helpers_serve import http_get, program

from whippet.cli.main import main
from whippet.demo import MODEL

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
ENDLESS = {"logit_bias": {str(stop): -100 for stop in range(8)}, "temperature": 0}


def ask(port: int, body: dict[str, object], *headers: str) -> tuple[bytes, bytes]:
    """Head and body of the reply."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "What is 37 + 45?"}]} | body
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(post(CHAT, json.dumps(asked).encode(), *headers))
        raw = b"".join(iter(lambda: link.recv(65536), b""))
    head, _, back = raw.partition(b"\r\n\r\n")
    return head, back


def test_it_serves_and_drains(tmp_path: Path) -> None:
    """From the command to SIGTERM: the replies that are being made are still sent, new clients are not let in."""
    with program(str(MODEL), "--base", "fp32") as made:
        said = "".join(made.said)
        assert said.startswith("whippet serves tiny (fp32 on cpu) at http://127.0.0.1:") and said.count("\n") == 2
        assert f"curl http://127.0.0.1:{made.port}/v1/chat/completions -H 'content-type: application/json'" in said
        assert json.loads(http_get(made.port, "/v1/models"))["data"][0]["id"] == "tiny"
        replies: list[tuple[bytes, bytes]] = []
        asked = ENDLESS | {"max_tokens": 150, "stream": True}
        threads = [threading.Thread(target=lambda: replies.append(ask(made.port, asked))) for _ in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while made.figures()["running"] < 3:
            assert time.monotonic() < deadline
        made.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert [head.split()[1] for head, _ in replies] == [b"200"] * 3
        assert all(
            body.rstrip().endswith(b"0") and b"data: [DONE]" in body and b'"length"' in body for _, body in replies
        )
        assert made.process.wait(30) == 143
        with pytest.raises(ConnectionRefusedError):
            http_get(made.port, "/health")


def test_a_key_is_made_and_told_once() -> None:
    with program(str(MODEL), "--api-key", "auto", "--host", "0.0.0.0") as made:
        (told,) = [line for line in made.said if line.startswith("key: ")]
        key = told.split()[1]
        assert len(key) >= 40 and "".join(made.said).count(key) == 1 and "Bearer KEY" in made.said[-1]
        assert ask(made.port, {"max_tokens": 3})[0].startswith(b"HTTP/1.1 401")
        assert ask(made.port, {"max_tokens": 3}, f"authorization: Bearer {key}")[0].startswith(b"HTTP/1.1 200")
        made.process.send_signal(signal.SIGINT)
        assert made.process.wait(30) == 130


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach that address, so a key is needed"),
        (["--host", "::"], "so a key is needed"),
        (["--host", "box.lan"], "so a key is needed"),
        (["--api-key", ""], "printable ASCII"),
        (["--api-key-file", "NOWHERE"], "No such file"),
        (["--api-key-file", "EMPTY"], "holds no key"),
        (["--port", "70000"], "must be from 0 to 65535"),
        (["--port", "TAKEN"], "Address already in use"),
        (["--host", "203.0.113.7", "--api-key", "k"], "Cannot assign requested address"),
        (["--adapter", "folder"], "wanted NAME=DIR"),
        (["--adapter", "a=x", "--adapter", "a=y"], "two have the same name"),
        (["--adapter", "a=nowhere"], "nowhere"),
        (["--max-rows", "0"], "max_rows"),
        (["--max-waiting", "-1"], "max_waiting = -1"),
        (["--template", "chatm"], "did you mean 'chatml'"),
    ],
)
def test_what_cannot_be_served(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        swap = {"TAKEN": str(taken.getsockname()[1]), "EMPTY": str(tmp_path / "empty"), "NOWHERE": str(tmp_path / "no")}
        arguments = [swap.get(word, word) for word in arguments]
        port = [] if "--port" in arguments else ["--port", "0"]
        assert main(["serve", str(MODEL), *port, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("whippet.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(MODEL), "--port", "0"]) == 2
    assert "pip install 'whippet[serve]'" in capsys.readouterr().err


def test_what_the_template_is_told_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(MODEL), "--template-variable", "colour=red"]) == 2
    assert "reads no variable 'colour'" in capsys.readouterr().err
