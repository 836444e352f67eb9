"""``/v1/completions``: texts or tokens to be continued as they stand, without the chat template."""

from __future__ import annotations

from collections.abc import Sequence

from whippet.serve.errors import bad
from whippet.serve.fields import Json
from whippet.serve.logprobs import completion_logprobs
from whippet.serve.replies import GrowingReply
from whippet.serve.schema import CompletionRequest
from whippet.serve.served import Prepared, Served, refusing
from whippet.serve.shape import Shape


def prepare(asked: CompletionRequest, served: Served) -> Prepared:
    """The engine's requests. Runs in the thread that prepares; ApiError for what does not fit."""
    served.adapter(asked.model)
    prompts = [_ids(prompt, served) for prompt in asked.prompts]
    requests = [
        served.request(asked, prompt, place, top=asked.top, param="prompt")
        for prompt in prompts
        for place in range(asked.n)
    ]
    return Prepared(tuple(requests), requests[0].sampling.stop, asked.n)


def _ids(prompt: str | tuple[int, ...], served: Served) -> Sequence[int]:
    if isinstance(prompt, str):
        with refusing("prompt"):
            return served.model.prompt_ids(prompt)
    size = served.model.decoder.config.vocab_size
    outside = next((token_id for token_id in prompt if token_id >= size), None)
    if outside is not None:
        raise bad(f"token id {outside} is outside the vocabulary of {size}", "prompt")
    return prompt


class CompletionShape(Shape):
    """The replies of one request as OpenAI's JSON."""

    object = chunk_object = "text_completion"
    prefix = "cmpl-"

    def __init__(self, asked: CompletionRequest, served: Served, prepared: Prepared) -> None:
        super().__init__(asked, served, prepared)
        self._top = asked.top
        self._before = [""] * len(self.replies)
        if asked.echo:
            texts = [prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt) for prompt in asked.prompts]
            self._before = [texts[index // asked.n] for index in range(len(self.replies))]
        self._offsets = [0] * len(self.replies)

    def choice(self, reply: GrowingReply) -> Json:
        return self._told(reply, self._before[reply.index] + reply.text, reply.finish)

    def opening(self, reply: GrowingReply) -> list[Json]:
        before = self._before[reply.index]
        return [self.chunk([{"index": reply.index, "text": before, "logprobs": None, "finish_reason": None}])] * (
            before != ""
        )

    def piece(self, reply: GrowingReply, text: str) -> list[Json]:
        return [self.chunk([self._told(reply, text, None)])]

    def closing(self, reply: GrowingReply) -> list[Json]:
        return [self.chunk([self._told(reply, "", reply.finish)])]

    def _told(self, reply: GrowingReply, text: str, finish: str | None) -> Json:
        drawn = reply.take_pending()
        logprobs = None
        if self._top is not None and drawn:
            logprobs = completion_logprobs(drawn, self._top, self._offsets[reply.index], self.token_bytes)
            self._offsets[reply.index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
        return {"index": reply.index, "text": text, "logprobs": logprobs, "finish_reason": finish}
