"""A decoder as it answers: without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from whippet.model.decoder import Decoder


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
