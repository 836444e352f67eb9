"""The engine: prompts in, replies out, several at once, each as if it were alone.

Comes in: a decoder, prompts as token ids, how to sample, which tokens end a reply. Goes out: a ``Reply`` for each. The
prompts go through the decoder as one packed stream, which fills the key-value cache; then every unfinished row gains a
token a step. Rows that are finished leave the batch.

Shapes: T prompt tokens of all rows end to end, B rows still growing, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whippet.errors import UsageError
from whippet.infer.sampling import Sampler, Sampling
from whippet.model.cache import KVCache
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder

MAX_ROWS = 64
MAX_PROMPT_TOKENS = 16384
MAX_CACHE_BYTES = 2 * 1024**3
FIRST_CAPACITY = 64

Finish = Literal["stop", "length"]
OnToken = Callable[[int, int], bool]
"""Called with the prompt's index and each new id; returning True ends that reply (``finish`` is then "stop")."""


@dataclass(frozen=True)
class Reply:
    """What followed one prompt."""

    ids: list[int]
    """The new tokens, without the token that ended them."""
    finish: Finish
    """``stop``: the model ended, or a stop text came. ``length``: max_new_tokens or the model's context is full."""
    stop_id: int | None = None
    """The token that ended the reply."""


class Generation:
    """Replies in the making, for prompts that go through the decoder together. ``step`` until ``active`` is empty."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        stop_ids: frozenset[int],
    ) -> None:
        assert len(prompts) == len(samplings) > 0
        self._decoder, self._stop_ids = decoder, stop_ids
        self._prompts = [list(prompt) for prompt in prompts]
        self._device = decoder.device
        self._sampler = Sampler(samplings, self._device)
        self._room = [_room(p, s, decoder.config) for p, s in zip(self._prompts, samplings, strict=True)]
        self._ids: list[list[int]] = [[] for _ in prompts]
        self._ended: dict[int, tuple[Finish, int | None]] = {}
        self._cache: KVCache | None = None
        self._rows = list(range(len(prompts)))
        """The prompt behind each row of the cache."""

    @property
    def active(self) -> list[int]:
        """Indices of the prompts whose replies still grow."""
        return [index for index in range(len(self._prompts)) if index not in self._ended]

    @torch.no_grad()
    def step(self) -> list[tuple[int, int]]:
        """Draw one token for each active prompt; return (prompt index, id) of those that did not end a reply."""
        rows = self.active
        with evaluating(self._decoder):
            hidden_BH = self._prefill() if self._cache is None else self._decode(self._cache, rows)
            drawn = self._sampler(self._decoder.logits(hidden_BH), rows)
        new = []
        for row, token_id in zip(rows, drawn, strict=True):
            if token_id in self._stop_ids:
                self.end(row, token_id)
                continue
            self._ids[row].append(token_id)
            new.append((row, token_id))
            if len(self._ids[row]) == self._room[row]:
                self._ended[row] = ("length", None)
        return new

    def end(self, row: int, stop_id: int | None = None) -> None:
        """Let the reply to prompt ``row`` grow no further, because it is complete."""
        self._ended[row] = ("stop", stop_id)

    def reply(self, row: int) -> Reply:
        """The finished reply to prompt ``row``."""
        finish, stop_id = self._ended[row]
        return Reply(self._ids[row], finish, stop_id)

    def _prefill(self) -> Tensor:
        """Run all prompts as one packed stream; return the last hidden state of each, [B, H]."""
        lengths = [len(prompt) for prompt in self._prompts]
        capacity = max(length + min(room, FIRST_CAPACITY) for length, room in zip(lengths, self._room, strict=True))
        self._cache = KVCache(
            self._decoder.config,
            rows=len(lengths),
            capacity=capacity,
            dtype=self._decoder.compute_dtype,
            device=self._device,
        )
        ids_T = self._tensor([token_id for prompt in self._prompts for token_id in prompt])
        positions_T = self._tensor([place for length in lengths for place in range(length)])
        ends_B = self._tensor(lengths).cumsum(0)
        borders = torch.cat([ends_B.new_zeros(1), ends_B]).int()
        hidden_TH = self._decoder(ids_T, positions_T, borders, max(lengths), cache=self._cache)
        return hidden_TH[ends_B - 1]

    def _decode(self, cache: KVCache, rows: list[int]) -> Tensor:
        """Run the newest token of each active row; return its hidden state, [B, H]."""
        if rows != self._rows:
            cache.select(self._tensor([self._rows.index(row) for row in rows]))
            self._rows = rows
        lengths = [len(self._prompts[row]) + len(self._ids[row]) for row in rows]
        if cache.longest == cache.capacity:
            cache.grow(2 * cache.capacity)
        ids_B = self._tensor([self._ids[row][-1] for row in rows])
        positions_B = self._tensor([length - 1 for length in lengths])
        borders = torch.arange(len(rows) + 1, dtype=torch.int32, device=self._device)
        hidden_BH: Tensor = self._decoder(ids_B, positions_B, borders, 1, cache=cache)
        return hidden_BH

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    stop_ids: frozenset[int],
    on_token: OnToken | None = None,
) -> list[Reply]:
    """Reply to each of ``prompts`` (token ids), in their order; ``sampling`` is one for all or one for each.

    UsageError if a prompt is empty, holds an id outside the vocabulary, or leaves no room in the model's context.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    replies: dict[int, Reply] = {}
    for wave in _waves(decoder, prompts, samplings):
        generation = Generation(decoder, [prompts[i] for i in wave], [samplings[i] for i in wave], stop_ids)
        while generation.active:
            for row, token_id in generation.step():
                if on_token is not None and on_token(wave[row], token_id):
                    generation.end(row)
        replies |= {index: generation.reply(row) for row, index in enumerate(wave)}
    return [replies[index] for index in range(len(prompts))]


def _waves(decoder: Decoder, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> Iterator[list[int]]:
    """Indices of prompts that run together: of similar length, and few enough for their cache to stay small."""
    config = decoder.config
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * decoder.compute_dtype.itemsize
    rooms = [_room(prompt, s, config) for prompt, s in zip(prompts, samplings, strict=True)]
    wave: list[int] = []
    tokens = longest = 0
    for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
        tokens += len(prompts[index])
        longest = max(longest, len(prompts[index]) + rooms[index])
        full = len(wave) == MAX_ROWS or tokens > MAX_PROMPT_TOKENS
        if wave and (full or (len(wave) + 1) * longest * token_bytes > MAX_CACHE_BYTES):
            yield wave
            wave, tokens, longest = [], len(prompts[index]), len(prompts[index]) + rooms[index]
        wave.append(index)
    if wave:
        yield wave


def _room(prompt: Sequence[int], sampling: Sampling, config: ModelConfig) -> int:
    """Tokens that may follow ``prompt``: prompt and reply together fit in the model's context."""
    if not prompt:
        raise UsageError("the prompt is empty: give at least one token (this tokenizer adds none of its own)")
    outside = next((token_id for token_id in prompt if not 0 <= token_id < config.vocab_size), None)
    if outside is not None:
        raise UsageError(f"token id {outside} is outside the vocabulary of {config.vocab_size}")
    if len(prompt) >= config.context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens, which leaves no room in the model's context of {config.context}"
        )
    return min(sampling.max_new_tokens, config.context - len(prompt))


@contextmanager
def evaluating(decoder: Decoder) -> Iterator[None]:
    """Dropout off inside, and as it was outside: training samples in the middle of a run."""
    training = decoder.training
    if training:
        decoder.eval()
    try:
        yield
    finally:
        if training:
            decoder.train()
