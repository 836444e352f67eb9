"""Many clients at once on the loopback: no error, every stream whole and its own, memory flat."""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest
from helpers_serve import Running, events, program

import whippet
from whippet.demo import MODEL
from whippet.infer.model import Model

QUESTIONS = [f"What is {a} + {b}?" for a in (3, 14, 27, 35) for b in (4, 16, 29, 51)]


def wanted(model: Model) -> list[str]:
    return [model.chat(question, temperature=0).content for question in QUESTIONS]


def client(port: int, place: int, requests: int, answers: list[str]) -> list[float]:
    """Ask so many questions over one connection, every other one as a stream; the seconds that each took."""
    link = HTTPConnection("127.0.0.1", port, timeout=120)
    taken = []
    for turn in range(requests):
        which = (7 * place + turn) % len(QUESTIONS)
        asked = {"model": "tiny", "messages": [{"role": "user", "content": QUESTIONS[which]}], "temperature": 0}
        stream = (place + turn) % 2 == 0
        started = time.monotonic()
        link.request(
            "POST", "/v1/chat/completions", json.dumps(asked | {"stream": stream}), {"content-type": "application/json"}
        )
        response = link.getresponse()
        raw = response.read()
        taken.append(time.monotonic() - started)
        assert response.status == 200, raw
        if stream:
            *chunks, end = events(raw)
            assert end == "[DONE]" and len({chunk["id"] for chunk in chunks}) == 1
            said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            finish = chunks[-1]["choices"][0]["finish_reason"]
        else:
            choice = json.loads(raw)["choices"][0]
            said, finish = choice["message"]["content"], choice["finish_reason"]
        assert (said, finish) == (answers[which], "stop"), (QUESTIONS[which], said)
    link.close()
    return taken


def load(port: int, clients: int, requests: int, answers: list[str]) -> list[float]:
    with ThreadPoolExecutor(clients) as pool:
        taken = pool.map(lambda place: client(port, place, requests, answers), range(clients))
        return [seconds for one in taken for seconds in one]


def test_several_clients_at_once(server: Running) -> None:
    answers = wanted(server.served.model)
    assert len(set(answers)) > 12
    assert len(load(server.port, 12, 3, answers)) == 36
    assert server.idle()


@pytest.mark.long
def test_sixty_four_clients() -> None:
    answers = wanted(whippet.load(MODEL, base="fp32", device="cpu"))
    with program(str(MODEL), "--base", "fp32") as made:
        load(made.port, 64, 2, answers)
        before = made.memory()
        started = time.monotonic()
        taken = load(made.port, 64, 20, answers)
        seconds = time.monotonic() - started
        assert made.idle()
        after, figures = made.memory(), made.figures()
        print(
            f"\n{len(taken)} requests in {seconds:.1f} s, median {statistics.median(taken):.2f} s, "
            f"longest {max(taken):.2f} s, {figures['generated_tokens_total'] / seconds:.0f} tokens/s; "
            f"memory {before / 2**20:.0f} -> {after / 2**20:.0f} MiB; {figures}"
        )
        assert len(taken) == 1280 and figures["failed_total"] == 0
        assert after < 1.05 * before
