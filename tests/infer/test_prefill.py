"""Streams of prompts that are filled up to a recorded size give what they give as they are written.

Graphs need a GPU. Here what would be recorded is run anew at each replay, from the same tensors: what is tested is all
that surrounds the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_infer import make_decoder
from torch import Tensor

from whippet.infer import prefill
from whippet.infer.batching import Batcher
from whippet.infer.prefill import Prefill
from whippet.infer.requests import Request
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder
from whippet.model.paged import PAGE

LENGTHS = [(5,), (5, 60, 33), (90, 1), (64, 64), (7, 8, 9), (90,), (64, 64), (3, 2)]


class Graph:
    """Runs work again, from what its inputs hold then."""

    def __init__(self, made: Prefill, inputs: tuple[Tensor, ...], size: int) -> None:
        self.made, self.inputs, self.size, self.replays = made, inputs, size, 0
        self.last_BH = torch.zeros(len(inputs[4]), made._decoder.config.hidden_size)

    def replay(self) -> None:
        self.replays += 1
        self.last_BH.copy_(self.made._pass(self.inputs, self.size))


def recorded(made: Prefill, given: tuple[Tensor, ...], size: int) -> Any:
    graph: Any = Graph(made, tuple(tensor.clone() for tensor in given), size)
    return prefill._Recorded(graph, graph.inputs, graph.last_BH)


def replies(decoder: Decoder, *, records: bool) -> tuple[list[list[list[int]]], Prefill]:
    batcher = Batcher(decoder, max_rows=4, cache_tokens=16 * PAGE, reuse=False)
    batcher._read._records = records
    found = []
    for turn, lengths in enumerate(LENGTHS):
        prompts = [[(3 + 7 * turn + place * (row + 2)) % 60 for place in range(n)] for row, n in enumerate(lengths)]
        numbers = [batcher.add(Request(tuple(prompt), Sampling(5), frozenset())) for prompt in prompts]
        drawn: dict[int, list[int]] = {number: [] for number in numbers}
        while batcher.busy:
            for event in batcher.step():
                if event.drawn is not None:
                    drawn[event.number].append(event.drawn.id)
        found.append(list(drawn.values()))
    return found, batcher._read


def test_filled_up_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prefill, "_record", recorded)
    decoder = make_decoder()
    wanted, _ = replies(decoder, records=False)
    got, made = replies(decoder, records=True)
    assert got == wanted
    # By tokens and rows; of each size the first is run as written.
    assert {key: one.graph.replays for key, one in made._graphs.items()} == {(128, 1): 1, (128, 2): 3, (128, 4): 1}
