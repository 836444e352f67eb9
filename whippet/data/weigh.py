"""Tokens to tokens with a loss weight each: the fourth arrow of the walk.

Comes in: ``Tokens``, whose authors are known, and the example they came from. Goes out: ``Weighed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whippet.chat.messages import Conversation, Example
from whippet.chat.render import Author, Tokens
from whippet.options import TrainOn


@dataclass(frozen=True)
class Weighed:
    """ids int32 [T]; weights [T] (float32, or uint8 where all are 0 or 1): the loss weight of *predicting* token t.
    ``weights[0]`` is 0, for nothing comes before it."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        """Tokens with a weight above 0."""
        return int(np.count_nonzero(self.weights))


def weigh(tokens: Tokens, example: Example | None, train_on: TrainOn) -> Weighed:
    """Loss weights of ``tokens``.

    ``assistant``: the assistant's tokens, what ends its turns included. ``last``: those of its last turn. ``all``:
    every token but the first, so that a BOS is never trained. A message's own weight replaces 1 for its tokens.
    """
    ours = tokens.authors == Author.ASSISTANT
    if train_on == "all":
        weights = np.ones(len(tokens.ids), dtype=np.float32)
    elif train_on == "last" and ours.any():
        weights = (ours & (tokens.turns == tokens.turns[ours].max())).astype(np.float32)
    else:
        weights = ours.astype(np.float32)
    if isinstance(example, Conversation):
        for turn, message in enumerate(example.messages):
            if message.weight is not None:
                weights[ours & (tokens.turns == turn)] *= message.weight
    weights[:1] = 0.0
    return Weighed(tokens.ids, weights)


def windows(whole: Weighed, max_length: int) -> list[Weighed]:
    """Running text in windows of at most ``max_length`` tokens. A window begins with the last token of the one before,
    so that every token is predicted exactly once."""
    assert max_length >= 2
    starts = range(0, max(len(whole) - 1, 1), max_length - 1)
    parts = [Weighed(whole.ids[s : s + max_length], whole.weights[s : s + max_length].copy()) for s in starts]
    for part in parts:
        part.weights[:1] = 0.0
    return parts
