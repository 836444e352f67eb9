"""What the routes share: the model, the names that it answers to, and the worker that runs it.

``prepare`` is where a request becomes tokens, off the event loop: rendering a stranger's messages can take half a
second, and a template is rendered by one thread at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from whippet.chat.messages import Message
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import MissingExtra, UsageError, WhippetError
from whippet.infer.model import Model
from whippet.infer.requests import Request
from whippet.infer.sampling import Sampling
from whippet.infer.worker import Worker
from whippet.serve.errors import ApiError, bad
from whippet.serve.logprobs import TokenBytes
from whippet.serve.schema import Asked

PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "probe", "description": "probe", "parameters": {"type": "object", "properties": {}}},
}
Made = TypeVar("Made")


@dataclass(frozen=True)
class Prepared:
    """An HTTP request as the engine's own."""

    requests: tuple[Request, ...]
    """One for each reply: those to the first prompt, to the second, ..."""
    stop: tuple[str, ...]
    n: int
    """Replies to each prompt."""

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt once."""
        return sum(len(request.prompt) for request in self.requests[:: self.n])


class Served:
    """One model, with its adapters, for all routes. name: the id of the model as it was loaded; adapters: those of the
    adapters that lie beside it."""

    def __init__(self, model: Model, worker: Worker, *, name: str, adapters: Sequence[str] = ()) -> None:
        check_names(name, adapters)
        self.model, self.worker = model, worker
        self.names: dict[str, str | None] = {name: None} | {adapter: adapter for adapter in adapters}
        self.created = int(time.time())
        self.token_bytes = TokenBytes(model.tokenizer)
        self.shows_tools = _shows_tools(model)
        self._preparer = ThreadPoolExecutor(1, "whippet-prepare")

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    async def prepare(self, make: Callable[[], Made]) -> Made:
        """``make()`` in the thread that prepares requests."""
        return await asyncio.get_running_loop().run_in_executor(self._preparer, make)

    def close(self, timeout: float) -> None:
        """Let what is answered end, for up to ``timeout`` seconds."""
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self.worker.close(timeout)

    def adapter(self, name: str) -> str | None:
        """The adapter that the request field ``model`` chooses, None for the model itself; ApiError 404."""
        if name not in self.names:
            raise ApiError(
                404,
                f"the model {name[:80]!r} is not served here; there are: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        return self.names[name]

    def sampling(self, asked: Asked, place: int) -> Sampling:
        """How the reply with the index ``place`` among n is drawn."""
        given = dict(asked.sampling)
        if "seed" in given:
            given["seed"] = (given["seed"] + place) % 2**63
        with refusing():
            return replace(self.model.chat_sampling, **given)

    def request(
        self, asked: Asked, prompt: Sequence[int], place: int, *, top: int | None, param: str, **more: Any
    ) -> Request:
        """The engine's request for one reply; ``more`` are further fields of it. ApiError, by the field ``param``, if
        the prompt does not fit in the model's context."""
        context = self.model.decoder.config.context
        if not prompt:
            raise bad("holds no token", param)
        if len(prompt) >= context:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens, which leaves no room in the model's context of {context}",
                param=param,
                code="context_length_exceeded",
            )
        return Request(
            tuple(prompt),
            self.sampling(asked, place),
            self.model.renderer.stop_ids,
            adapter=self.adapter(asked.model),
            logprobs=top is not None,
            top=top or 0,
            **more,
        )


def check_names(name: str, adapters: Sequence[str]) -> None:
    """UsageError if two models would answer to one name."""
    names = (name, *adapters)
    if len(set(names)) != len(names):
        raise UsageError(f"two of the names {', '.join(names)} are the same; give each --adapter its own")


@contextmanager
def refusing(param: str | None = None) -> Iterator[None]:
    """Inside, an error of ours is the request's: 400 by the field ``param``."""
    try:
        yield
    except MissingExtra as error:
        raise ApiError(400, f"not available on this server: {error}", param=param, code="unsupported") from error
    except WhippetError as error:
        raise ApiError(400, str(error), param=param) from error


def _shows_tools(model: Model) -> bool:
    """Whether the chat template tells the model of tools; one that does not would ignore them in silence."""
    if not model.has_template:
        return False
    asked = [Message("user", "a")]
    try:
        return model.renderer.prompt_ids(asked, [PROBE_TOOL]) != model.renderer.prompt_ids(asked)
    except WhippetError:
        return False
