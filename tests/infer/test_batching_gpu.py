"""Recorded passes on a GPU give the tokens that passes as written give, together and alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import TINY, random_decoder

from whippet.infer.batching import Batcher
from whippet.infer.requests import Request
from whippet.infer.sampling import Sampling
from whippet.kernels.nf4 import quantize_nf4
from whippet.model.decoder import Decoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = (5, 130, 64, 1, 200, 77)


def replies(decoder: Decoder, lengths: tuple[int, ...], *, records: bool, rows: int = 8) -> list[list[int]]:
    """Asked for three times by one batcher: compiled, recorded, replayed; the last ones."""
    batcher = Batcher(decoder, max_rows=rows, cache_tokens=4096, reuse=False)
    batcher._steps.records &= records
    batcher._read._records &= records
    for _ in range(3):
        found: dict[int, list[int]] = {}
        for length in lengths:
            prompt = tuple((3 + 7 * place + length) % 97 for place in range(length))
            found[batcher.add(Request(prompt, Sampling(40), frozenset()))] = []
        while batcher.busy:
            for event in batcher.step():
                assert event.error is None
                if event.drawn is not None:
                    found[event.number].append(event.drawn.id)
    return list(found.values())


@pytest.mark.parametrize("base", ["bf16", "nf4"])
def test_recorded_as_written_together_and_alone(base: str) -> None:
    config = replace(TINY, hidden_size=256, intermediate_size=512, head_dim=64, num_layers=4)
    decoder = random_decoder(config, dtype=torch.bfloat16).bfloat16()
    if base == "nf4":
        for _, projection in decoder.projections():
            projection.set_quantised(quantize_nf4(projection.weight.detach()))
    decoder.requires_grad_(False).cuda()
    wanted = replies(decoder, LENGTHS, records=False)
    assert len({tuple(reply) for reply in wanted}) == len(LENGTHS)
    assert replies(decoder, LENGTHS, records=True) == wanted
    assert [replies(decoder, (length,), records=True, rows=1)[0] for length in LENGTHS] == wanted
