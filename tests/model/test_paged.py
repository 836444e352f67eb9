"""The decoder over pages equals the decoder over a ``KVCache``, and the one without a cache."""

from __future__ import annotations

import random

import pytest
import torch
from helpers_models import CONFIGS, TINY, logits, random_decoder, stream

from whippet.errors import UsageError
from whippet.model.cache import KVCache
from whippet.model.decoder import Decoder
from whippet.model.paged import PAGE, PagedCache, Rows, page_bytes

ROWS = 3


def text(row: int, length: int = 160) -> torch.Tensor:
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(row))


def run(decoder: Decoder, cache: Rows | KVCache, starts: list[int], chunks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each row's new tokens."""
    lengths = [len(chunk) for chunk in chunks]
    _, borders, longest = stream(*lengths)
    positions = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    with torch.no_grad():
        return list(decoder.logits(decoder(torch.cat(chunks), positions, borders, longest, cache=cache)).split(lengths))


@pytest.mark.parametrize("family", CONFIGS)
def test_with_pages_equals_without_and_with_a_plain_cache(family: str) -> None:
    """Prompts at once, more of them (one of which begins only now), then a token a row beside one that only fills up.
    All that nobody has written is NaN. Prompts are longer than LongRoPE's original context from the beginning."""
    decoder = random_decoder(CONFIGS[family])
    texts = [text(row) for row in range(ROWS)]
    plain = [logits(decoder, ids) for ids in texts]
    order = random.Random(2).sample(range(1, 12), 9)
    table = torch.tensor([order[3 * row : 3 * row + 3] for row in range(ROWS)] + [[0, 0, 0]], dtype=torch.int32)
    cache = PagedCache(decoder.config, 12, dtype=torch.float32, device="cpu")
    for pool in (cache.keys_LPSKD, cache.values_LPSKD):
        pool.fill_(torch.nan)
    other = KVCache(decoder.config, 2, 160, dtype=torch.float32, device="cpu")
    places = [0] * ROWS

    def check(rows: list[int], counts: list[int], held: list[int] | None, spare: bool = False) -> None:
        spans = [slice(places[row], places[row] + count) for row, count in zip(rows, counts, strict=True)]
        chunks = [texts[row][span] for row, span in zip(rows, spans, strict=True)]
        starts = [span.start for span in spans]
        members = [*rows, ROWS] if spare else rows
        lengths = torch.tensor([*starts, 0] if spare else starts, dtype=torch.int32)
        more = [torch.tensor([5])] if spare else []
        found = run(decoder, Rows(cache, table[members], lengths, held), [*starts, 0][: len(members)], chunks + more)
        for row, span, scores in zip(rows, spans, found, strict=False):
            assert (scores - plain[row][span]).abs().max() <= 1e-5, (family, row, span)
            places[row] = span.stop
        if rows == [0, 1]:
            for scores, same in zip(found, run(decoder, other, starts, chunks), strict=True):
                assert (scores - same).abs().max() <= 1e-5

    check([0, 1], [17, 61], [0, 0])
    check([0, 1], [1, 2], [17, 61])
    check([0, 1, 2], [47, 5, 70], [18, 63, 0])
    for _ in range(3):
        check([2, 0, 1], [1, 1, 1], None, spare=True)
    assert places == [68, 71, 73]
    unused = [page for page in range(1, 12) if page not in order]
    assert cache.keys_LPSKD[:, unused].isnan().all() and cache.keys_LPSKD[:, order[2::3]].isnan().all()


def test_a_page_holds_what_is_said_of_it() -> None:
    cache = PagedCache(TINY, 5, dtype=torch.bfloat16, device="cpu")
    assert cache.pages == 5 and cache.keys_LPSKD.shape == (2, 5, PAGE, 2, 16)
    pools = cache.keys_LPSKD, cache.values_LPSKD
    assert sum(pool.numel() * pool.element_size() for pool in pools) == 5 * page_bytes(TINY, torch.bfloat16)
    assert not any(pool.any() for pool in pools)


def test_rows_that_do_not_fit_the_tokens_are_refused() -> None:
    cache = PagedCache(TINY, 3, dtype=torch.float32, device="cpu")
    table, lengths, decoder = torch.tensor([[1], [2]], dtype=torch.int32), torch.tensor([4, 5]), random_decoder()
    with pytest.raises(UsageError, match="the cache holds 2 rows, and 1 documents came"):
        run(decoder, Rows(cache, table, lengths, [4, 5]), [4], [text(0, 3)])
    with pytest.raises(UsageError, match="rows that get one token each met 3 tokens"):
        run(decoder, Rows(cache, table, lengths), [4, 5], [text(0, 3), text(1, 1)])
