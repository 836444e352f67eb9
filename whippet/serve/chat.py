"""``/v1/chat/completions``: a checked request to tokens, and what the engine draws to a reply or to chunks of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from whippet.chat.messages import Message, ToolCall
from whippet.chat.reply_stream import ReplyStream
from whippet.chat.template_variables import wrong_value
from whippet.infer.tool_loop import with_ids
from whippet.serve.errors import bad
from whippet.serve.fields import Json
from whippet.serve.logprobs import chat_logprob
from whippet.serve.messages import read_messages
from whippet.serve.replies import GrowingReply
from whippet.serve.schema import ChatRequest
from whippet.serve.served import Prepared, Served, refusing
from whippet.serve.shape import Shape

if TYPE_CHECKING:
    from whippet.infer.grammar import LlGrammar

MAX_GRAMMAR = 256 * 1024
"""Characters of a request's schemas: reading them takes some seconds a megabyte."""


def prepare(asked: ChatRequest, served: Served) -> Prepared:
    """The engine's requests. Runs in the thread that prepares; ApiError for what cannot be rendered or does not fit."""
    served.adapter(asked.model)
    messages = read_messages(asked.messages)
    tools = asked.tools if asked.tool_choice != "none" else ()
    if tools and not served.shows_tools:
        raise bad("the chat template of this model does not tell it of tools", "tools", "unsupported_parameter")
    for name, value in asked.template_variables.items():
        if wrong := wrong_value(value):
            raise bad(wrong, f"chat_template_kwargs.{name:.40}")
    renderer = served.model.renderer
    with refusing("chat_template_kwargs" if asked.template_variables else "messages"):
        prompt = renderer.prompt_ids(messages, tools, asked.template_variables)
    grammar = _grammar(asked, served)
    requests = [
        served.request(
            asked, prompt, place, top=asked.top, param="messages",
            grammar=grammar.copy() if grammar is not None and place else grammar,
        )
        for place in range(asked.n)
    ]  # fmt: skip
    return Prepared(tuple(requests), requests[0].sampling.stop + renderer.stop_strings, asked.n)


def _grammar(asked: ChatRequest, served: Served) -> LlGrammar | None:
    """What replies have to keep to, None if they are free. ApiError for a schema that cannot be kept to."""
    renderer, tokenizer = served.model.renderer, served.tokenizer
    make: Callable[[], LlGrammar]
    if asked.tool_choice in ("required", "named"):
        from whippet.infer.call_grammar import tool_call_grammar

        several = asked.parallel_tool_calls
        make = partial(tool_call_grammar, renderer, asked.tools, asked.tool_name, several=several)
        param, size = "tools", len(json.dumps(asked.tools))
    elif asked.response_format != "text":
        from whippet.infer.grammar import json_schema_grammar

        schema = {"type": "object"} if asked.json_schema is None else asked.json_schema
        make = partial(json_schema_grammar, tokenizer, schema, renderer.stop_ids)
        param, size = "response_format", len(json.dumps(schema))
        param += ".json_schema.schema" if asked.json_schema is not None else ""
    else:
        return None
    if size > MAX_GRAMMAR:
        raise bad(f"{size} characters, wanted at most {MAX_GRAMMAR}", param)
    with refusing(param):
        return make()


class ChatShape(Shape):
    """The replies of one request as OpenAI's JSON."""

    object, chunk_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, asked: ChatRequest, served: Served, prepared: Prepared) -> None:
        super().__init__(asked, served, prepared)
        self._names = frozenset(tool["function"]["name"] for tool in asked.tools if asked.tool_choice != "none")
        """Of the functions that may be called; none: replies are not searched for calls."""
        self._several, self._top = asked.parallel_tool_calls, asked.top
        self._parse = partial(served.model.renderer.parse, tools=asked.tools)
        self._splitters = [ReplyStream(self._parse, self._names) for _ in self.replies]

    def choice(self, reply: GrowingReply) -> Json:
        message = self._parse(reply.text) if self._names else Message("assistant", reply.text)
        calls = self._calls(message)
        content = message.content if calls else reply.text
        told: Json = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if calls:
            told["tool_calls"] = [_told(call) for call in calls]
        return {
            "index": reply.index,
            "message": told,
            "logprobs": self._logprobs(reply),
            "finish_reason": "tool_calls" if calls else reply.finish,
        }

    def opening(self, reply: GrowingReply) -> list[Json]:
        return [self._delta(reply, {"role": "assistant", "content": ""})]

    def piece(self, reply: GrowingReply, text: str) -> list[Json]:
        if self._names:
            text = self._splitters[reply.index].push(text)
        return [self._delta(reply, {"content": text}, self._logprobs(reply))] if text else []

    def closing(self, reply: GrowingReply) -> list[Json]:
        chunks: list[Json] = []
        calls: Sequence[ToolCall] = ()
        if self._names:
            splitter = self._splitters[reply.index]
            message = splitter.close()
            calls = self._calls(message)
            rest = (message.content if calls else reply.text)[len(splitter.shown) :]
            if rest:
                chunks.append(self._delta(reply, {"content": rest}, self._logprobs(reply)))
        for place, call in enumerate(calls):
            chunks.append(self._delta(reply, {"tool_calls": [{"index": place} | _told(call)]}, self._logprobs(reply)))
        finish = "tool_calls" if calls else reply.finish
        return [*chunks, self._delta(reply, {}, self._logprobs(reply), finish)]

    def _calls(self, message: Message) -> tuple[ToolCall, ...]:
        """The calls of a reply, each with its id; only the first where several are not wanted."""
        calls = with_ids(message, None).tool_calls
        return calls if self._several else calls[:1]

    def _logprobs(self, reply: GrowingReply) -> Json | None:
        """Of the tokens that were not told of yet."""
        drawn = reply.take_pending()
        if self._top is None or not drawn:
            return None
        return {"content": [chat_logprob(one, self.token_bytes) for one in drawn], "refusal": None}

    def _delta(self, reply: GrowingReply, delta: Json, logprobs: Json | None = None, finish: str | None = None) -> Json:
        told = {"index": reply.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self.chunk([told])


def _told(call: ToolCall) -> Json:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
