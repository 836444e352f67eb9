"""What the server tells about itself: health, figures for Prometheus, and its OpenAPI document."""

from __future__ import annotations

import json
import re

import pytest
from helpers_serve import Running, running, scripted

from whippet.infer.model import Model
from whippet.serve.schema import CHAT, COMPLETION

SAMPLE = re.compile(r'(whippet_[a-z_]+)(\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})? (-?\d+(?:\.\d+)?)')


def samples(made: Running) -> dict[str, float]:
    """What ``/metrics`` says, held against its own HELP and TYPE lines."""
    status, headers, raw = made.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, float] = {}
    types: dict[str, str] = {}
    for line in raw.decode().splitlines():
        if line.startswith("# TYPE "):
            types[line.split()[2]] = line.split()[3]
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            name = re.sub("_(bucket|sum|count)$", "", match[1])
            assert types[name if types.get(name) == "histogram" else match[1]]
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_figures(tiny: Model) -> None:
    with running(scripted(tiny, "hello you")) as made:
        asked = {"model": "model", "messages": [{"role": "user", "content": "What is 37 + 45?"}]}
        for more in ({}, {"stream": True}, {"n": 3}, {"temperature": 9}, {"model": "x"}):
            made.ask("POST", "/v1/chat/completions", asked | more)
        made.ask("GET", "/v1/models")
        told = samples(made)
        tokens = len(tiny.tokenizer.encode("hello you"))
        prompt = len(tiny.prompt_ids([{"role": "user", "content": "What is 37 + 45?"}]))
        route = 'whippet_responses_total{route="/v1/chat/completions",status='
        assert [told[f'{route}"{status}"}}'] for status in (200, 400, 404)] == [3, 1, 1]
        assert told["whippet_requests_total"] == 5 and told["whippet_generated_tokens_total"] == 5 * tokens
        assert told["whippet_prompt_tokens_total"] == 5 * prompt
        assert told["whippet_first_token_seconds_count"] == told["whippet_reply_seconds_count"] == 3
        assert told['whippet_reply_seconds_bucket{le="+Inf"}'] == 3 and told["whippet_reply_seconds_sum"] > 0
        assert told["whippet_running"] == told["whippet_waiting"] == 0 and told["whippet_healthy"] == 1
        buckets = [value for name, value in told.items() if name.startswith("whippet_first_token_seconds_bucket")]
        assert buckets == sorted(buckets) and len(buckets) == 15


def test_health_tells_when_the_engine_fails(tiny: Model) -> None:
    served = scripted(tiny, "hello")
    with running(served) as made:
        assert made.ask("GET", "/health")[0] == 200
        engine = served.worker._batcher

        def fail() -> list[object]:
            raise RuntimeError("the device is gone")

        working, engine.step = engine.step, fail  # type: ignore[method-assign, assignment]
        for _ in range(3):
            status, told = made.chat()
            assert status == 500 and told["error"]["type"] == "server_error"
        status, _, raw = made.ask("GET", "/health")
        assert status == 503 and json.loads(raw) == {"status": "failing"}
        engine.step = working  # type: ignore[method-assign]
        assert made.chat()[0] == 200 and made.ask("GET", "/health")[0] == 200


def test_a_stream_whose_engine_fails_says_so(tiny: Model) -> None:
    served = scripted(tiny, "one two three four")
    engine = served.worker._batcher
    step = engine.step

    def fail_later() -> list[object]:
        if served.worker.figures().generated_tokens >= 2:
            raise RuntimeError("the device is gone")
        return list(step())

    engine.step = fail_later  # type: ignore[method-assign, assignment]
    with running(served) as made:
        openai = pytest.importorskip("openai")
        with pytest.raises(openai.APIError, match="the reply failed"):
            list(
                made.client().chat.completions.create(
                    model="model", messages=[{"role": "user", "content": "x"}], stream=True
                )
            )


def test_the_document_lists_what_is_checked(server: Running) -> None:
    status, _, raw = server.ask("GET", "/openapi.json")
    told = json.loads(raw)
    assert status == 200 and told["openapi"] == "3.1.0"
    schemas = told["components"]["schemas"]
    for name, table in (("ChatRequest", CHAT), ("CompletionRequest", COMPLETION)):
        assert set(schemas[name]["properties"]) == set(table) and schemas[name]["additionalProperties"] is False
    assert sorted(schemas["ChatRequest"]["required"]) == ["messages", "model"]
    properties = schemas["ChatRequest"]["properties"]
    assert properties["temperature"]["anyOf"][0]["maximum"] == 2 and properties["model"]["enum"] == ["tiny"]
    assert set(told["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/health", "/metrics",
        "/openapi.json",
    }  # fmt: skip
    references = set(re.findall(r'"#/components/schemas/(\w+)"', raw.decode()))
    assert references <= set(schemas)
    for path, methods in told["paths"].items():
        for method in methods:
            assert (
                server.ask(method.upper(), path.replace("{name}", "tiny"), {} if method == "post" else None)[0] != 404
            )
