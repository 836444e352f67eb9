"""What a request says of how its reply is drawn and when it ends, checked. ``draw.py`` does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from whippet.errors import UsageError

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
