"""What is asked of the engine, and what it tells back, a token at a time.

``batching.py`` answers requests in one thread; ``worker.py`` gives them to it from others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from whippet.infer.sampling import Sampling

Finish = Literal["stop", "length"]
MOST_TOP = 20
"""Alternatives of a token that can be asked for."""


class Grammar(Protocol):
    """What a reply may look like (``grammar.py``): which tokens may come next, told anew after each."""

    def allowed(self) -> Tensor:
        """int32 [ceil(V / 32)] on the CPU: bit ``i % 32`` of word ``i // 32`` is set where token ``i`` may come."""
        ...

    def accept(self, token_id: int) -> None:
        """The token that was drawn; never one that ``allowed`` shuts out."""
        ...


@dataclass(frozen=True)
class Request:
    """One prompt, and how it is to be answered."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stop_ids: frozenset[int]
    """Tokens that end the reply, and are not part of it."""
    adapter: str | None = None
    """Which of the adapters that lie beside the model; None: the model as it was loaded."""
    logprobs: bool = False
    """Whether to tell how likely each token was, under the model itself: before temperature, filters and penalties."""
    top: int = 0
    """So many of the likeliest tokens in its place are told too; at most ``MOST_TOP``."""
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Drawn:
    """One token of a reply."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What a step brought for one request: a token, its end, or both."""

    number: int
    """Of the request, as ``add`` gave it."""
    drawn: Drawn | None = None
    finish: Finish | None = None
    """Set once, with the last event: ``stop`` by a token of ``stop_ids``, ``length`` when there is no more room."""
    stop_id: int | None = None
    error: str | None = None
    """Why it ended without an answer; ``finish`` is None then, and no event follows."""
    cached: int = 0
    """With the first token: how many of the prompt's tokens were known from before."""

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None
