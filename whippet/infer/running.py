"""A request on its way through the engine, and a step that is under way.

Comes in: what a step drew, on the device. Goes out: what each request is told of it.

B: rows of a step. V: vocabulary. W: words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whippet.infer.pages import Held
from whippet.infer.requests import Drawn, Request


@dataclass(eq=False)
class Running:
    """A request in a slot, or on its way to one."""

    number: int
    request: Request
    ids: list[int]
    """The prompt and the reply so far."""
    room: int
    """Most tokens of the reply."""
    slot: int = -1
    held: Held = field(default_factory=Held)
    filled: int = 0
    """How many of ``ids`` the cache holds, or will when what is launched is done."""
    cached: int = 0
    ready: bool = False
    """Whether its newest token is known to ``Steps``, and only that is to be computed."""
    told: bool = False
    long: bool = False
    """Whether the cache holds them as LongRoPE turns a long document."""
    ended: bool = False

    @property
    def replied(self) -> int:
        return len(self.ids) - len(self.request.prompt)


@dataclass
class Launched:
    """A step whose tokens have not been looked at."""

    rows: list[Running]
    on_host: list[Tensor]
    """ids, whether finite, log-probability, likeliest ids and theirs, as far as they are wanted."""
    done: torch.cuda.Event | None


def allowed(rows: Sequence[Running], vocab: int) -> Tensor | None:
    """Tokens that grammars allow, int32 [B, W] on the CPU, all where a row has none; None where no row has one."""
    if all(row.request.grammar is None for row in rows):
        return None
    words = -(-vocab // 32)
    mask_BW = torch.full((len(rows), words), -1, dtype=torch.int32)
    for place, row in enumerate(rows):
        if row.request.grammar is not None:
            bits = row.request.grammar.allowed()
            mask_BW[place] = 0
            mask_BW[place, : len(bits)] = bits[:words]
    return mask_BW


def drawn_by(request: Request, token_id: int, more: list[list[object]], place: int) -> Drawn:
    """``token_id`` with what the request wants to know of it. ``more``: what follows ids and verdicts."""
    if not more or not (request.logprobs or request.top):
        return Drawn(token_id)
    lists = list(more)
    logprob = None
    if not isinstance(lists[0][place], list):
        logprob = lists.pop(0)[place]
    top: tuple[tuple[int, float], ...] = ()
    if request.top and len(lists) == 2:
        names, values = lists[0][place], lists[1][place]
        top = tuple(zip(names[: request.top], values[: request.top], strict=True))  # type: ignore[index]
    return Drawn(token_id, logprob if request.logprobs else None, top)  # type: ignore[arg-type]
