"""The packed stream: documents do not meet, the cache changes nothing, recomputing changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import TINY, logits, random_decoder, stream

from whippet import lora
from whippet.errors import UsageError
from whippet.model.cache import KVCache
from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions

CONFIGS = {
    "llama": TINY,
    "llama3": replace(TINY, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64), tie_embeddings=True),
    "qwen2": replace(TINY, family="qwen2", qkv_bias=True, num_heads=4, num_kv_heads=1),
}
LENGTHS = (7, 1, 30, 12)


def ids(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(CONFIGS[request.param])


def test_packed_equals_separate(decoder: Decoder) -> None:
    tokens = ids(sum(LENGTHS))
    separate = torch.cat([logits(decoder, document) for document in tokens.split(list(LENGTHS))])
    # Equal up to fp32 rounding, which is relative: a matrix library may sum in another order for another number of rows
    # (on a CPU with AVX512 it does, and logits of 3 differ by 1.3e-6), so the bound is 1e-6 of the largest logit. That
    # nothing passes from one document to another is held to the bit by the next test.
    assert (logits(decoder, tokens, *LENGTHS) - separate).abs().max() <= 1e-6 * separate.abs().max()


def test_a_document_has_no_influence_on_another(decoder: Decoder) -> None:
    tokens = ids(sum(LENGTHS))
    before = logits(decoder, tokens, *LENGTHS)
    tokens[8:38] = ids(30, seed=4)
    after = logits(decoder, tokens, *LENGTHS)
    changed = (before != after).any(-1)
    assert changed[8:38].any()
    assert not changed[:8].any()
    assert not changed[38:].any()


def test_a_later_token_has_no_influence_on_an_earlier_one(decoder: Decoder) -> None:
    tokens = ids(20)
    before = logits(decoder, tokens)
    tokens[12] = (tokens[12] + 1) % 97
    after = logits(decoder, tokens)
    assert (before[:12] == after[:12]).all()
    assert (before[12:] != after[12:]).any(-1).all()


def run(decoder: Decoder, cache: KVCache, chunks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each row's new tokens, which go on where the row's cache ends."""
    lengths = [len(chunk) for chunk in chunks]
    _, borders, longest = stream(*lengths)
    starts = cache.lengths_B.tolist()
    positions = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    with torch.no_grad():
        hidden = decoder(torch.cat(chunks), positions, borders, longest, cache=cache)
        return list(decoder.logits(hidden).split(lengths))


def test_with_cache_equals_without(decoder: Decoder) -> None:
    """Ragged prompts at once, then a token a row, then ragged turns, then a row that leaves."""
    rows = [ids(25, seed=seed) for seed in range(3)]
    wanted = [logits(decoder, row) for row in rows]
    cache = KVCache(decoder.config, 3, 40, dtype=torch.float32, device="cpu")
    places = [0, 0, 0]

    def check(counts: list[int], members: list[int]) -> None:
        spans = [slice(places[row], places[row] + n) for row, n in zip(members, counts, strict=True)]
        met = run(decoder, cache, [rows[row][span] for row, span in zip(members, spans, strict=True)])
        for row, span, scores in zip(members, spans, met, strict=True):
            assert (scores - wanted[row][span]).abs().max() <= 1e-5
            places[row] = span.stop

    check([5, 1, 9], [0, 1, 2])
    check([1, 1, 1], [0, 1, 2])
    check([3, 3, 3], [0, 1, 2])
    check([2, 7, 1], [0, 1, 2])
    cache.select(torch.tensor([2, 0]))
    assert cache.lengths_B.tolist() == [14, 11]
    check([1, 1], [2, 0])


def test_what_does_not_fit_the_cache_is_refused() -> None:
    decoder = random_decoder()
    cache = KVCache(TINY, 1, 8, dtype=torch.float32, device="cpu")
    with pytest.raises(UsageError, match="9 new ones do not fit the cache of 8"):
        run(decoder, cache, [ids(9)])
    cache = KVCache(TINY, 2, 8, dtype=torch.float32, device="cpu")
    with pytest.raises(UsageError, match="2 rows, and 1 documents"):
        decoder(ids(2), *stream(2), cache=cache)


def gradients(decoder: Decoder, tokens: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    decoder.zero_grad()
    hidden = decoder(tokens, *stream(*LENGTHS))
    scores = decoder.logits(hidden)
    (scores * torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum().backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("recompute", "park"), [(1, 0), (2, 0), (2, 1), (2, 2)])
def test_recomputing_changes_no_bit(recompute: int, park: int, dropout: float) -> None:
    """Dropout draws the same mask again; inputs that were parked come back."""
    decoder = random_decoder()
    lora.attach(decoder, LoraOptions(r=4, dropout=dropout), seed=1)
    for parameter in lora.adapter_parameters(decoder).values():
        torch.nn.init.normal_(parameter, std=0.2)
    decoder.train()
    kept = gradients(decoder, ids(50))
    decoder.recompute, decoder.park = recompute, park
    again = gradients(decoder, ids(50))
    assert set(kept) == set(again)
    assert len(kept) == 2 * 7 * TINY.num_layers
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    if dropout:
        assert any(not torch.equal(kept[name], other) for name, other in gradients(decoder, ids(50), 1).items())


@pytest.mark.parametrize("tie", [False, True])
def test_training_every_weight_gives_every_gradient(tie: bool) -> None:
    decoder = random_decoder(replace(TINY, tie_embeddings=tie, qkv_bias=True, o_bias=True, mlp_bias=True))
    whole = gradients(decoder, ids(50))
    assert set(whole) == {name for name, _ in decoder.named_parameters()}
    assert ("head" in whole) is not tie
    name = "layers.1.mlp_norm"
    step = 1e-2
    parameter = dict(decoder.named_parameters())[name]
    weights = torch.linspace(-1, 1, 50 * 97).view(50, 97)
    with torch.no_grad():
        parameter[5] += step
        above = (logits(decoder, ids(50), *LENGTHS) * weights).sum()
        parameter[5] -= 2 * step
        below = (logits(decoder, ids(50), *LENGTHS) * weights).sum()
    assert torch.isclose((above - below) / (2 * step), whole[name][5], rtol=2e-2)


def test_masters_stay_fp32_and_products_are_in_the_compute_dtype() -> None:
    decoder = random_decoder(dtype=torch.bfloat16)
    hidden = decoder(ids(50), *stream(*LENGTHS))
    assert hidden.dtype == torch.bfloat16
    decoder.logits(hidden).sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in decoder.parameters() if p.grad is not None)


def test_embeddings_may_come_from_elsewhere() -> None:
    decoder = random_decoder()
    tokens = ids(50)
    direct = decoder(tokens, *stream(*LENGTHS))
    assert torch.equal(direct, decoder.hidden(decoder.embed(tokens), *stream(*LENGTHS)))


def test_a_model_needs_no_memory_before_it_is_loaded() -> None:
    big = ModelConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072)
    assert all(parameter.is_meta for parameter in Decoder(big).parameters())
