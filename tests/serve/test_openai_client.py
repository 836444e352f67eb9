"""OpenAI's own Python client against every route: what it is given has the types and values that it expects."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers_serve import Running, events

openai = pytest.importorskip("openai")
SUM = [{"role": "user", "content": "What is 37 + 45?"}]
SORT = [{"role": "user", "content": "Sort these numbers: 52, 7, 31"}]


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return server.client()


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "whippet"
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("gpt-4")
    assert told.value.code == "model_not_found" and "there are: tiny" in str(told.value)


def test_a_chat(client: Any, server: Running) -> None:
    reply = client.chat.completions.create(model="tiny", messages=SUM, temperature=0)
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-") and reply.model == "tiny"
    (choice,) = reply.choices
    assert choice.message.content == "37 + 45 = 82" and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and choice.logprobs is None and choice.message.tool_calls is None
    wanted = server.served.model.chat("What is 37 + 45?", temperature=0)
    assert choice.message.content == wanted.content
    prompt = server.served.model.prompt_ids(SUM)
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == len(server.served.tokenizer.encode(wanted.content))
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_chat_as_a_stream(client: Any) -> None:
    whole = client.chat.completions.create(model="tiny", messages=SORT, temperature=0)
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="tiny", messages=SORT, temperature=0, stream=True, stream_options=options)
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *spoken, last, usage = chunks
    assert spoken[0].choices[0].delta.role == "assistant" and spoken[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content for chunk in spoken) == whole.choices[0].message.content
    assert all(chunk.choices[0].finish_reason is None for chunk in spoken) and len(spoken) > 5
    assert last.choices[0].finish_reason == "stop" and last.choices[0].delta.content is None
    assert usage.choices == [] and usage.usage.completion_tokens == whole.usage.completion_tokens
    assert usage.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_bytes_of_a_stream(server: Running) -> None:
    status, headers, raw = server.ask(
        "POST", "/v1/chat/completions", {"model": "tiny", "messages": SUM, "stream": True, "temperature": 0}
    )
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *chunks, end = events(raw)
    assert end == "[DONE]" and "usage" not in chunks[0]
    assert chunks[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert chunks[-1]["choices"][0]["delta"] == {}


def test_a_reply_ends_where_it_must(client: Any) -> None:
    short = client.chat.completions.create(model="tiny", messages=SUM, temperature=0, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    older = client.chat.completions.create(model="tiny", messages=SUM, temperature=0, max_tokens=3)
    assert older.choices[0].message.content == short.choices[0].message.content
    for stop in (" = ", ["zzz", " = "]):
        cut = client.chat.completions.create(model="tiny", messages=SUM, temperature=0, stop=stop, logprobs=True)
        assert cut.choices[0].message.content == "37 + 45" and cut.choices[0].finish_reason == "stop"
        assert "".join(one.token for one in cut.choices[0].logprobs.content) == "37 + 45"
        stream = client.chat.completions.create(model="tiny", messages=SUM, temperature=0, stop=stop, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "37 + 45"


def test_log_probabilities_are_those_of_the_model(client: Any, server: Running) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=SUM, temperature=0, logprobs=True, top_logprobs=3, max_tokens=6
    )
    told = reply.choices[0].logprobs.content
    model = server.served.model
    prompt = model.prompt_ids(SUM)
    ids = model.tokenizer.encode("".join(one.token for one in told))
    scores = model.logits(prompt + ids).log_softmax(-1)[len(prompt) - 1 : -1]
    assert len(told) == len(ids) == 6
    for one, token_id, row in zip(told, ids, scores, strict=True):
        assert math.isclose(one.logprob, row[token_id].item(), abs_tol=1e-4)
        best = row.topk(3)
        assert [round(top.logprob, 3) for top in one.top_logprobs] == [round(v, 3) for v in best.values.tolist()]
        assert one.top_logprobs[0].token == model.tokenizer.decode([int(best.indices[0])])
        assert bytes(one.bytes).decode() == one.token
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=SUM, temperature=0, logprobs=True, top_logprobs=3, max_tokens=6, stream=True
        )
    )
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [(one.token, round(one.logprob, 4)) for one in streamed] == [(o.token, round(o.logprob, 4)) for o in told]


def test_several_replies_each_with_a_seed_of_its_own(client: Any) -> None:
    drawn = {"model": "tiny", "messages": [{"role": "user", "content": "Colour of banana dog?"}], "temperature": 2.0}
    several = client.chat.completions.create(**drawn, n=3, seed=11, max_tokens=12)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in several.choices]
    assert len(set(texts)) == 3
    for place, text in enumerate(texts):
        alone = client.chat.completions.create(**drawn, seed=11 + place, max_tokens=12)
        assert alone.choices[0].message.content == text
    assert several.usage.completion_tokens > 12
    assert several.usage.prompt_tokens == client.chat.completions.create(**drawn, max_tokens=1).usage.prompt_tokens
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**drawn, n=3, seed=11, max_tokens=12, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_prompts_that_begin_alike_are_computed_once(client: Any) -> None:
    start = [{"role": "system", "content": "Tom moved to Lima. Anna moved to Oslo. " * 12}]
    asked = {"model": "tiny", "messages": start + SUM, "temperature": 0, "max_tokens": 4}
    first, second = (client.chat.completions.create(**asked, n=n) for n in (1, 2))
    assert first.choices[0].message.content == second.choices[1].message.content
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < second.usage.prompt_tokens == first.usage.prompt_tokens, "of the prompt once, for both replies"


def test_sampling_arrives(client: Any, server: Running) -> None:
    given = {"temperature": 1.3, "top_p": 0.9, "seed": 5}
    more = {"top_k": 40, "min_p": 0.01}
    reply = client.chat.completions.create(model="tiny", messages=SUM, max_tokens=20, **given, extra_body=more)
    wanted = server.served.model.chat(SUM, max_new_tokens=20, **given, **more)
    assert reply.choices[0].message.content == wanted.content


def test_completions(client: Any, server: Running) -> None:
    model = server.served.model
    reply = client.completions.create(model="tiny", prompt="What is", temperature=0, max_tokens=7)
    assert reply.object == "text_completion" and reply.id.startswith("cmpl-")
    assert reply.choices[0].text == model.generate("What is", max_new_tokens=7)
    ids = model.prompt_ids("What is")
    assert client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=7).choices == reply.choices
    several = client.completions.create(
        model="tiny", prompt=["What is", "Sort"], n=2, temperature=0, max_tokens=7, echo=True
    )
    texts = [choice.text for choice in several.choices]
    assert texts[:2] == ["What is" + reply.choices[0].text] * 2 and texts[2] == texts[3]
    assert texts[2] == "Sort" + model.generate("Sort", max_new_tokens=7)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage.prompt_tokens == len(ids) + len(model.prompt_ids("Sort"))
    by_ids = client.completions.create(
        model="tiny", prompt=[ids, model.prompt_ids("Sort")], temperature=0, max_tokens=7
    )
    assert ["What is" + by_ids.choices[0].text, "Sort" + by_ids.choices[1].text] == texts[::2]


def test_completions_as_a_stream_and_with_log_probabilities(client: Any) -> None:
    asked = {"model": "tiny", "prompt": "Sort", "temperature": 0, "max_tokens": 9, "logprobs": 2}
    whole = client.completions.create(**asked).choices[0]
    told = whole.logprobs
    assert "".join(told.tokens) == whole.text and len(told.tokens) == len(told.token_logprobs) == 9
    assert told.text_offset == [len("".join(told.tokens[:place])) for place in range(9)]
    assert all(
        max(top.values()) == pytest.approx(p) for top, p in zip(told.top_logprobs, told.token_logprobs, strict=True)
    )
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.text
    streamed = [chunk.choices[0].logprobs for chunk in chunks[:-1] if chunk.choices[0].logprobs]
    assert [token for part in streamed for token in part.tokens] == told.tokens
    assert [offset for part in streamed for offset in part.text_offset] == told.text_offset
    assert chunks[-2].choices[0].finish_reason == whole.finish_reason and chunks[-1].usage.completion_tokens == 9
    echoed = client.completions.create(model="tiny", prompt="What", echo=True, max_tokens=3, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in echoed).startswith("What")


@pytest.mark.parametrize(
    ("changes", "error", "param", "said"),
    [
        ({"model": "gpt-4"}, "NotFoundError", "model", "'gpt-4' is not served here"),
        ({"temperature": 3}, "BadRequestError", "temperature", "3 is out of range, wanted 0 to 2"),
        ({"max_tokens": 0}, "BadRequestError", "max_tokens", "wanted 1 to"),
        ({"messages": []}, "BadRequestError", "messages", "0 items"),
        ({"messages": [{"role": "king", "content": "x"}]}, "BadRequestError", "messages[0].role", "unknown role"),
        (
            {"messages": SUM * 2 + [{"role": "system", "content": "x"}]},
            "BadRequestError",
            "messages",
            "can only be the",
        ),
        ({"extra_body": {"temprature": 1}}, "BadRequestError", "temprature", "did you mean 'temperature'?"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "BadRequestError", "messages", "context of 1024"),
    ],
)
def test_errors_have_openais_shape(client: Any, changes: dict[str, Any], error: str, param: str, said: str) -> None:
    asked = {"model": "tiny", "messages": SUM} | changes
    with pytest.raises(getattr(openai, error)) as told:
        client.chat.completions.create(**asked)
    assert told.value.param == param and said in told.value.message
    assert told.value.type == "invalid_request_error"
    with pytest.raises(getattr(openai, error)):
        client.chat.completions.create(**asked, stream=True)


def test_tokens_that_there_are_not(server: Running) -> None:
    status, told = server.post("/v1/completions", {"model": "tiny", "prompt": [3, 99999]})
    assert status == 400 and told["error"]["param"] == "prompt" and "outside the vocabulary of 1536" in str(told)
    status, told = server.chat(logit_bias={"99999": 1})
    assert status == 400 and "99999" in told["error"]["message"]


def test_the_async_client(server: Running) -> None:
    import asyncio

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            stream = await client.chat.completions.create(model="tiny", messages=SUM, temperature=0, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == "37 + 45 = 82"
