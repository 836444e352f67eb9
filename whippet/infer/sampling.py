"""How the next token is chosen from the logits.

Comes in: logits and one ``Sampling`` a row. Goes out: one token id a row. Each row draws from its own generator, so
what a row says depends on its own seed and never on the rows beside it.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whippet.errors import UsageError, WhippetError

MOST_BIASES = 1024
"""Tokens whose logits one request may shift."""


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn and when it ends.

    The order: logit_bias, repetition_penalty, frequency_penalty and presence_penalty change the logits; the request's
    grammar shuts tokens out; temperature, top_k, top_p and min_p say how one of the others is drawn.
    """

    max_new_tokens: int = 512
    """Most tokens that are generated; the model's context may end a reply earlier."""
    temperature: float = 0.0
    """Logits are divided by it; 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that together reach this probability (Holtzman et al. 2020)."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 from all."""
    min_p: float = 0.0
    """Draw from tokens at least this likely relative to the likeliest one (Nguyen et al. 2024)."""
    seed: int | None = None
    """The same seed draws the same reply; None draws anew each time."""
    stop: tuple[str, ...] = ()
    """Texts that end a reply; they are not part of it."""
    repetition_penalty: float = 1.0
    """Divides the logits above 0, and multiplies the others, of tokens that are in the prompt or in the reply so far
    (Keskar et al. 2019, section 4.1, as transformers has it)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that are in the reply so far (OpenAI's; the prompt does not count)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit once for each time that it is in the reply so far."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to their logits: around -100 a token is never drawn, around 100 always. A mapping
    is taken too, and held as pairs in the order of their ids."""

    def __post_init__(self) -> None:
        _wanted(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")
        _wanted(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "0 or more")
        _wanted(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _wanted(self.top_k >= 0, "top_k", self.top_k, "0 (all tokens) or more")
        _wanted(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        _wanted(self.seed is None or 0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2**63 - 1")
        _wanted(not isinstance(self.stop, str) and all(self.stop), "stop", self.stop, "a list of texts, none empty")
        _wanted(0 < self.repetition_penalty <= 10, "repetition_penalty", self.repetition_penalty, "above 0, at most 10")
        for name, value in (("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)):
            _wanted(-2 <= value <= 2, name, value, "from -2 to 2")
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @property
    def filters(self) -> bool:
        """Whether any token can be shut out, so that the tokens have to be sorted."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def check(self, vocab: int) -> None:
        """UsageError if it speaks of a token that a vocabulary of this size does not have."""
        outside = next((token_id for token_id, _ in self.logit_bias if token_id >= vocab), None)
        _wanted(outside is None, "logit_bias", outside, f"about tokens below {vocab}, the size of the vocabulary")


class Sampler:
    """Draws for a fixed set of rows; holds each row's settings and generator."""

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._samplings = list(samplings)
        self._temperature_B = column([s.temperature for s in samplings])
        self._top_p_B = column([s.top_p for s in samplings])
        self._top_k_B = torch.tensor([s.top_k for s in samplings], device=device)
        self._min_p_B = column([s.min_p for s in samplings])
        self._generators = [_generator(s) if s.temperature > 0 else None for s in samplings]

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> list[int]:
        """One id for each of ``rows``, whose logits are given in that order. WhippetError if they are not finite."""
        ids_B = logits_BV.argmax(-1)
        # A maximum is NaN or infinite exactly if its row cannot be drawn from; ids and verdict share one transfer.
        finite = torch.isfinite(logits_BV.max(-1).values).all()
        drawn = [place for place, row in enumerate(rows) if self._generators[row] is not None]
        # Whether a row is sorted is its own affair too: drawing in another order would draw another token.
        for sort in (False, True):
            places = [place for place in drawn if self._samplings[rows[place]].filters == sort]
            if places:
                ids_B[places] = self._choose(logits_BV[places].float(), [rows[place] for place in places], sort)
        *ids, ok = torch.cat([ids_B, finite.long()[None]]).tolist()
        if not ok:
            raise WhippetError("the model's logits are not finite: its weights are damaged, or fp16 overflowed")
        return [int(token_id) for token_id in ids]

    def _choose(self, logits_BV: Tensor, rows: list[int], sort: bool) -> Tensor:
        generators = [self._generators[row] for row in rows]
        uniform = [torch.rand((), generator=generator, dtype=torch.float64) for generator in generators]
        return choose(
            logits_BV,
            torch.stack(uniform).to(logits_BV.device),
            self._temperature_B[rows],
            self._top_k_B[rows],
            self._top_p_B[rows],
            self._min_p_B[rows],
            sort=sort,
        )


def choose(
    logits_BV: Tensor,
    uniform_B: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    min_p_B: Tensor,
    *,
    sort: bool = True,
) -> Tensor:
    """Ids [B] int64 where the cumulative distribution of the filtered tokens passes ``uniform_B`` (float64, [0, 1)).

    logits_BV: fp32; temperatures above 0. With ``sort`` the running sum goes from the likeliest token down, without it
    in the order of the vocabulary; the filters then must be off in every row.
    """
    scaled_BV = logits_BV / temperature_B[:, None]
    if not sort:
        return _draw(scaled_BV.softmax(-1), uniform_B)
    scaled_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    rank_1V = torch.arange(scaled_BV.shape[-1], device=scaled_BV.device)[None]
    outside_BV = (top_k_B[:, None] > 0) & (rank_1V >= top_k_B[:, None])
    probs_BV = scaled_BV.masked_fill(outside_BV, -math.inf).softmax(-1)
    # A token stays while those before it have not reached top_p; the first always stays, also by rounding.
    before_BV = probs_BV.cumsum(-1) - probs_BV
    keep_BV = (top_p_B[:, None] >= 1) | (before_BV < top_p_B[:, None])
    keep_BV &= probs_BV >= min_p_B[:, None] * probs_BV[:, :1]
    keep_BV[:, 0] = True
    place_B = _draw(probs_BV * keep_BV, uniform_B)
    return order_BV.gather(-1, place_B[:, None])[:, 0]


def _draw(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first place at which the running sum of the weights exceeds its share ``uniform_B`` of the total."""
    sums_BV = weights_BV.double().cumsum(-1)
    place_B = torch.searchsorted(sums_BV, (uniform_B * sums_BV[:, -1])[:, None], right=True)[:, 0]
    # uniform * total may round up to the total; the last token that has any weight is then meant.
    last_B = (weights_BV > 0).long().mul(torch.arange(weights_BV.shape[-1], device=weights_BV.device)).amax(-1)
    return torch.minimum(place_B, last_B)


def _generator(sampling: Sampling) -> torch.Generator:
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    """``logit_bias`` as it is held; UsageError for what is not ids with numbers."""
    rule = f"at most {MOST_BIASES} token ids, each once, with a number from -100 to 100"
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, tuple) or len(pairs) > MOST_BIASES:
        raise UsageError(f"logit_bias = {given!r:.60}: must be {rule}")
    wrong = next((pair for pair in pairs if not _is_bias(pair)), None)
    if wrong is not None or len({token_id for token_id, _ in pairs}) < len(pairs):
        raise UsageError(f"logit_bias = {(given if wrong is None else wrong)!r:.60}: must be {rule}")
    return tuple(sorted((token_id, float(bias)) for token_id, bias in pairs))


def _is_bias(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2 or any(isinstance(value, bool) for value in pair):
        return False
    token_id, bias = pair
    ok = isinstance(token_id, int) and isinstance(bias, int | float)
    return ok and 0 <= token_id < 2**31 and -100 <= bias <= 100


def _wanted(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise UsageError(f"{name} = {value!r}: must be {rule}")
