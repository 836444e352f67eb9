"""The packed stream: documents do not meet, the cache changes nothing, recomputing changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import CONFIGS, TINY, deeper, logits, random_decoder, stream

from whippet import lora
from whippet.errors import UsageError
from whippet.model import park, recompute
from whippet.model.cache import KVCache
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions

LENGTHS = (7, 1, 30, 12)
TARGETS = LoraOptions().targets


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
    """Ragged prompts at once, then a token a row, then ragged turns, then a row that leaves. LongRoPE looks at what a
    row holds by then, so with that the cache is what everything before it would be now."""
    rows = [ids(25, seed=seed) for seed in range(3)]
    cache = KVCache(decoder.config, 3, 40, dtype=torch.float32, device="cpu")
    places = [0, 0, 0]

    def check(counts: list[int], members: list[int]) -> None:
        spans = [slice(places[row], places[row] + n) for row, n in zip(members, counts, strict=True)]
        met = run(decoder, cache, [rows[row][span] for row, span in zip(members, spans, strict=True)])
        for row, span, scores in zip(members, spans, met, strict=True):
            assert (scores - logits(decoder, rows[row][: span.stop])[span]).abs().max() <= 1e-5
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


def trained_decoder(targets: tuple[str, ...] = TARGETS, dropout: float = 0.0) -> Decoder:
    """Three layers with random factors, frozen weights."""
    decoder = random_decoder(replace(TINY, num_layers=3))
    lora.attach(decoder, LoraOptions(r=4, targets=targets, dropout=dropout), seed=1)
    for parameter in lora.adapter_parameters(decoder).values():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder.train()


# recompute, halves, park, entire
WAYS: list[tuple[int, ...]] = [
    (3, 3, 3, 1),
    (3, 3, 3, 2),
    (3, 3, 3, 3),
    (3, 2, 2, 1),
    (3, 2, 3, 1),
    (1, 0, 0),
    (3, 0, 0),
    (3, 0, 1),
    (3, 0, 3),
    (2, 2, 0),
    (3, 3, 0),
    (3, 2, 1),
    (3, 3, 2),
    (3, 1, 3),
    (3, 3, 3),
]


def set_way(decoder: Decoder, way: tuple[int, ...], tile: int = 0) -> None:
    decoder.recompute, decoder.halves, decoder.park, decoder.entire = (*way, 0)[:4]
    decoder.tile = tile


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_recomputing_changes_no_bit(way: tuple[int, ...], dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws the same mask again; what was parked comes back."""
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = trained_decoder(dropout=dropout)
    kept = gradients(decoder, ids(50))
    set_way(decoder, way)
    again = gradients(decoder, ids(50))
    assert set(kept) == set(again)
    assert len(kept) == 2 * 7 * 3
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    if dropout:
        assert any(not torch.equal(kept[name], other) for name, other in gradients(decoder, ids(50), 1).items())


@pytest.mark.parametrize("targets", [("q_proj",), ("o_proj",), ("up_proj",), ("down_proj",)], ids=str)
@pytest.mark.parametrize("way", [(3, 3, 0), (3, 1, 3), (3, 3, 3), (3, 3, 3, 3)], ids=str)
def test_recomputing_needs_no_factor_in_particular(
    way: tuple[int, ...], targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding is frozen, so in the first layer only what follows a factor has a gradient."""
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = trained_decoder(targets)
    decoder.embedding.requires_grad_(False)
    kept = gradients(decoder, ids(50))
    for tile in (0, 50):
        set_way(decoder, way, tile)
        again = gradients(decoder, ids(50))
        assert len(kept) == len(again) == 2 * 3
        assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("way", [(3, 0, 0), (3, 3, 0), (3, 1, 3), (3, 3, 3, 3)], ids=str)
def test_recomputing_serves_full_training(way: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit; and no weight is parked."""
    monkeypatch.setattr(park, "LEAST_BYTES", 2 * 64 * 50)
    decoder = random_decoder(replace(TINY, num_layers=3, qkv_bias=True, o_bias=True, mlp_bias=True))
    kept = gradients(decoder, ids(50))
    set_way(decoder, way)
    again = gradients(decoder, ids(50))
    assert set(kept) == set(again) == {name for name, _ in decoder.named_parameters()}
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    addresses = {parameter.data_ptr() for parameter in decoder.parameters()}
    seen: list[int] = []
    monkeypatch.setattr(
        park.Parking, "put", lambda self, tensors: seen.extend(x.data_ptr() for x in tensors) or 0, raising=True
    )
    decoder(ids(50), *stream(*LENGTHS))
    assert addresses.isdisjoint(seen) and bool(seen) is (way[2] > 0)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_recomputing_changes_no_bit_in_any_family(family: str, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed as a whole, by halves, parked, parked entire; and by tiles, which change the order of sums."""
    monkeypatch.setattr(park, "LEAST_BYTES", 0 if not full else 2 * 64 * 50)
    decoder = random_decoder(deeper(CONFIGS[family], 3))
    if not full:
        lora.attach(decoder, LoraOptions(r=4), seed=1)
        for parameter in lora.adapter_parameters(decoder).values():
            torch.nn.init.normal_(parameter, std=0.2)
    kept = gradients(decoder.train(), ids(50))
    assert len(kept) == len([parameter for parameter in decoder.parameters() if parameter.requires_grad])
    for way in ((3, 0, 0), (3, 3, 0), (3, 1, 3), (3, 3, 3, 2)):
        set_way(decoder, way)
        again = gradients(decoder, ids(50))
        assert set(kept) == set(again) and all(torch.equal(kept[name], again[name]) for name in kept), way
        set_way(decoder, way, 20)
        again = gradients(decoder, ids(50))
        assert all((kept[name] - again[name]).norm() <= 5e-6 * kept[name].norm() for name in kept), way


@pytest.mark.parametrize("tile", [7, 25, 49])
@pytest.mark.parametrize("way", [(2, 0, 0), (3, 0, 3), (3, 3, 0), (3, 2, 3)], ids=str)
def test_tiles_of_the_mlp_change_only_the_order_of_sums(
    way: tuple[int, ...], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = trained_decoder()
    widest: list[int] = []
    for block in list(decoder.blocks())[: way[0]]:
        block.gate_up.register_forward_hook(lambda module, args, out: widest.append(len(out)))
    kept = gradients(decoder, ids(50))
    assert max(widest) == 50
    widest.clear()
    set_way(decoder, way, tile)
    again = gradients(decoder, ids(50))
    # Forward and again; each tile is at most one token smaller than another.
    assert len(widest) == 2 * way[0] * -(-50 // tile) and max(widest) <= tile and max(widest) - min(widest) <= 1
    assert all((kept[name] - again[name]).norm() <= 2e-6 * kept[name].norm() for name in kept)


def test_the_whole_as_one_tile_changes_no_bit() -> None:
    """The way through tiles, with one tile: in the residual stream's place, edges instead of tensors."""
    decoder = trained_decoder()
    kept = gradients(decoder, ids(50))
    for way in ((3, 0, 0), (3, 3, 0)):
        set_way(decoder, way, 49)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recompute, "_tiles", lambda tokens, tile: iter([slice(0, tokens)]))
            again = gradients(decoder, ids(50))
        assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("way", [(3, 0, 0), (3, 0, 3), (3, 3, 0), (3, 2, 3), (3, 3, 3, 2)], ids=str)
@pytest.mark.parametrize("tile", [0, 20])
def test_a_backward_pass_may_be_run_twice(way: tuple[int, ...], tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory runs out after it began, and the graph is still there."""
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = trained_decoder()
    set_way(decoder, way, tile)
    once = gradients(decoder, ids(50))
    decoder.zero_grad()
    scores = decoder.logits(decoder(ids(50), *stream(*LENGTHS)))
    loss = (scores * torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum()
    loss.backward(retain_graph=True)
    decoder.zero_grad()
    loss.backward()
    assert all(torch.equal(once[name], p.grad) for name, p in decoder.named_parameters() if p.grad is not None)


def test_entire_layers_are_spread_evenly() -> None:
    decoder = Decoder(replace(TINY, num_layers=12))
    decoder.recompute, decoder.halves, decoder.park = 11, 9, 10
    for entire, wanted in ((0, []), (1, [9]), (2, [5, 9]), (4, [3, 5, 7, 9]), (8, [*range(2, 10)])):
        decoder.entire = entire
        assert [index for index in range(2, 10) if decoder._is_entire(index)] == wanted


def test_a_pass_that_did_not_end_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = trained_decoder()
    kept = gradients(decoder, ids(50))
    set_way(decoder, (3, 2, 3))
    abandoned = decoder(ids(50, seed=9), *stream(*LENGTHS))
    again = gradients(decoder, ids(50))
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    with pytest.raises(AssertionError, match="another pass has begun"):
        abandoned.sum().backward()


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
