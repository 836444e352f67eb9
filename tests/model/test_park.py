"""Parts come back as they were put, last first; the host's memory grows and stays where it is."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers_models import TINY, random_decoder, stream

from whippet import lora
from whippet.model import park
from whippet.model.decoder import Decoder
from whippet.model.park import Bay, Parking
from whippet.options import LoraOptions

CPU = torch.device("cpu")
TOKENS = 64


def parts(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def same_bytes(met: torch.Tensor, put: torch.Tensor) -> bool:
    return torch.equal(met.view(put.dtype), put.flatten())


def test_parts_come_back_last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several slabs: 40,000 bytes in slabs of 4,096 and more."""
    monkeypatch.setattr(park, "LEAST_SLAB", 4096)
    monkeypatch.setattr(park, "MOST_SLAB", 8192)
    parking = Parking(CPU)
    for round_ in range(2):
        parking.begin()
        put = [parts(10 * round_ + n, (n + 1, 300), (7,), dtype=dtype) for n, dtype in enumerate(DTYPES)]
        kept = [[one.clone() for one in part] for part in put]
        assert [parking.put(part) for part in put] == list(range(len(put)))
        for part in put:
            for one in part:
                one.zero_()  # they are not there any more
        for number in reversed(range(len(put))):
            met = parking.get(number)
            assert all(same_bytes(one, other) for one, other in zip(met, kept[number], strict=True))


DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.bfloat16)


def test_slabs_are_powers_of_two_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph copies to and from their addresses: none is given back, moved or made smaller."""
    monkeypatch.setattr(park, "LEAST_SLAB", 4096)
    monkeypatch.setattr(park, "MOST_SLAB", 2**16)
    parking = Parking(CPU)
    seen: dict[int, int] = {}
    for columns in (100, 3000, 50, 20_000, 100):
        parking.begin()
        for seed in range(4):
            parking.put(parts(seed, (3, columns)))
        now = {slab.data_ptr(): len(slab) for slab in parking._slabs}
        assert seen.items() <= now.items()
        seen = now
    needed = 4 * 3 * 20_000 * 4
    assert needed <= parking.host_bytes <= needed + 2**16
    assert all(size & (size - 1) == 0 and size <= 2**16 for size in seen.values())


def test_only_the_part_before_is_fetched() -> None:
    parking = Parking(CPU)
    parking.begin()
    for seed in range(5):
        parking.put(parts(seed, (3, 4)))
    for number in reversed(range(5)):
        parking.get(number)
        assert list(parking._coming) == ([number - 1] if number else [])
    assert not parking._coming


def test_a_bay_keeps_nothing_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What several nodes save, and views of it, is parked once; what it was made from is free when it has left."""
    monkeypatch.setattr(park, "LEAST_BYTES", 64)
    parking = Parking(CPU)
    parking.begin()
    bay = Bay(parking)
    leaf = torch.randn(8, 8, requires_grad=True)
    wide = leaf * 1  # saves nothing
    with bay.hooks():
        out = (wide[:, :4] * wide[:, 4:]).sum() + (wide * wide).sum() + wide.exp().sum()
    bay.send()
    assert [len(place) for place in parking._parts] == [2], "wide and its exponential"
    gone = weakref.ref(wide)
    del wide
    gc.collect()
    assert gone() is None
    out.backward()
    left, right = leaf.detach()[:, :4], leaf.detach()[:, 4:]
    wanted = torch.cat([right, left], 1) + 2 * leaf.detach() + leaf.detach().exp()
    torch.testing.assert_close(leaf.grad, wanted)


def test_what_is_known_is_parked_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(park, "LEAST_BYTES", 64)
    parking = Parking(CPU)
    parking.begin()
    bay = Bay(parking)
    x, weight = torch.randn(8, 8, requires_grad=True) * 1, torch.randn(8, 8, requires_grad=True)
    with bay.hooks():
        out = x.sin()
    with bay.hooks(only_known=True):
        out = out + x @ weight
    bay.send()
    assert len(parking._parts[0]) == 1
    out.sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().T @ torch.ones(8, 8))


def test_hidden_states_that_are_part_of_a_larger_memory_are_parked_too() -> None:
    """Such as those of a stream of text and images."""
    decoder = random_decoder(TINY)
    positions_T, borders, longest = stream(7, 9)
    ids_T = torch.arange(16) % TINY.vocab_size
    lora.attach(decoder, LoraOptions(r=2), 0)
    found = []
    layers = decoder.config.num_layers
    for parked in (0, layers):
        decoder.recompute, decoder.park = layers, parked
        x_TH = torch.cat([torch.zeros(5, TINY.hidden_size), decoder.embed(ids_T)])[5:].requires_grad_(True)
        decoder.hidden(x_TH, positions_T, borders, longest).square().sum().backward()
        found.append(x_TH.grad)
    assert found[0] is not None and found[1] is not None and torch.equal(found[0], found[1])


def test_dropping_a_pass_that_failed_leaves_nothing_on_the_device() -> None:
    parking = Parking(torch.device("cpu"))
    parking.begin()
    for part in parts(1, (70, 300), (70, 300)):
        parking.put([part])
    parking.get(1)
    parking.drop()
    assert not parking._leaving and not parking._coming
    parking.begin()
    (again,) = parts(2, (70, 300))
    assert same_bytes(parking.get(parking.put([again]))[0], again)


def test_dropout_alone_reads_the_state_of_the_random_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a CUDA graph it must not be read."""

    def refuse() -> Any:
        raise AssertionError("the state was read")

    monkeypatch.setattr(torch, "get_rng_state", refuse)
    for dropout in (0.0, 0.1):
        decoder = random_decoder().requires_grad_(False)
        lora.attach(decoder, LoraOptions(r=4, dropout=dropout), seed=1)
        for training in (False, True):
            decoder.train(training)
            for halves in (0, 2):
                decoder.recompute, decoder.halves = 2, halves
                if dropout and training:
                    with pytest.raises(AssertionError, match="the state was read"):
                        run(decoder)
                else:
                    run(decoder)


def run(decoder: Decoder, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    decoder.zero_grad()
    ids = torch.arange(TOKENS, device=device) % 97
    positions, borders, longest = stream(TOKENS // 2, TOKENS // 2)
    hidden = decoder(ids, positions.to(device), borders.to(device), longest)
    scores = decoder.logits(hidden)
    (scores * torch.linspace(-1, 1, scores.numel(), device=device).view_as(scores)).sum().backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


class AttentionOfAGPU(torch.autograd.Function):
    """Saves what FlashAttention's functions save: views of qkv, its own output, a second output, and a None."""

    @staticmethod
    def forward(ctx: Any, q_TQD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights_QTT = AttentionOfAGPU.weights(q_TQD, k_TKD)
        out_TQD = torch.einsum("qts,sqd->tqd", weights_QTT, v_TKD.repeat_interleave(2, 1)).contiguous()
        lse_QT = weights_QTT[:, :, 0].contiguous()
        ctx.save_for_backward(q_TQD, k_TKD, v_TKD, None, out_TQD, lse_QT)
        ctx.mark_non_differentiable(lse_QT)
        return out_TQD, lse_QT

    @staticmethod
    def weights(q_TQD: torch.Tensor, k_TKD: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("tqd,sqd->qts", q_TQD, k_TKD.repeat_interleave(2, 1))
        return scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf")).softmax(-1)

    @staticmethod
    def backward(ctx: Any, grad_TQD: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        q_TQD, k_TKD, v_TKD, nothing, out_TQD, lse_QT = ctx.saved_tensors
        assert nothing is None
        weights_QTT = AttentionOfAGPU.weights(q_TQD, k_TKD)
        assert torch.equal(lse_QT, weights_QTT[:, :, 0])
        rows_QT = (grad_TQD * out_TQD).sum(-1).T
        dweights_QTT = torch.einsum("tqd,sqd->qts", grad_TQD, v_TKD.repeat_interleave(2, 1))
        dscores_QTT = weights_QTT * (dweights_QTT - rows_QT[:, :, None])
        dq_TQD = torch.einsum("qts,sqd->tqd", dscores_QTT, k_TKD.repeat_interleave(2, 1))
        dk_TQD = torch.einsum("qts,tqd->sqd", dscores_QTT, q_TQD)
        dv_TQD = torch.einsum("qts,tqd->sqd", weights_QTT, grad_TQD)
        dk_TKD, dv_TKD = (grad.unflatten(1, (-1, 2)).sum(2) for grad in (dk_TQD, dv_TQD))
        return dq_TQD, dk_TKD, dv_TKD


def test_attention_as_a_gpu_has_it_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits; and qkv once, though three views of it are saved."""
    monkeypatch.setattr(park, "LEAST_BYTES", 1024)
    monkeypatch.setattr(
        "whippet.model.block.packed_attention", lambda q, k, v, *rest: AttentionOfAGPU.apply(q, k, v)[0]
    )
    decoder = random_decoder().requires_grad_(False)
    lora.attach(decoder, LoraOptions(r=4), seed=1)
    for factor in lora.adapter_parameters(decoder).values():
        torch.nn.init.normal_(factor, std=0.2)
    decoder.train()
    kept = run(decoder)
    sizes: list[list[int]] = []
    put = Parking.put

    def watched(self: Parking, tensors: list[torch.Tensor]) -> int:
        sizes.append(sorted(tensor.untyped_storage().nbytes() // (4 * TOKENS) for tensor in tensors))
        return put(self, tensors)

    monkeypatch.setattr(Parking, "put", watched)
    decoder.recompute, decoder.halves, decoder.park = 2, 2, 2
    again = run(decoder)
    assert len(kept) == 28 and all(torch.equal(kept[name], again[name]) for name in kept)
    # Numbers a token: attention's second output, u of o and of qkv, x, the output, qkv; and then s.
    assert sizes == [[4, 4, 12, 64, 64, 128], [64]] * 2


# recompute, halves, park, tile, entire
WAYS: list[tuple[int, ...]] = [
    (6, 0, 0, 0, 0), (6, 6, 0, 0, 0), (6, 0, 6, 0, 0), (6, 6, 6, 0, 0), (5, 3, 4, 0, 0), (6, 0, 6, 20, 0),
    (6, 6, 6, 20, 0), (6, 6, 6, 0, 2), (6, 6, 6, 0, 6),
]  # fmt: skip


def gpu_decoder() -> Decoder:
    config = replace(TINY, num_layers=6, head_dim=64, hidden_size=128, intermediate_size=256)
    decoder = random_decoder(config, dtype=torch.bfloat16).requires_grad_(False)
    lora.attach(decoder, LoraOptions(r=8), seed=1)
    for parameter in lora.adapter_parameters(decoder).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return decoder.to("cuda").train()


def set_way(decoder: Decoder, way: tuple[int, ...]) -> None:
    decoder.recompute, decoder.halves, decoder.park, decoder.tile, decoder.entire = way


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_on_a_gpu_gradients_are_those_of_what_is_kept(way: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As near as bf16 is: attention's backward pass sums in another order each time."""
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = gpu_decoder()
    kept = run(decoder, "cuda")
    set_way(decoder, way)
    for _ in range(3):  # the second pass finds its places
        again = run(decoder, "cuda")
        for name, wanted in kept.items():
            assert (again[name] - wanted).norm() <= 0.02 * wanted.norm(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_recorded_pass_is_the_same(way: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded after one pass as it is written, replayed twice, with another pass as written in between."""
    monkeypatch.setattr(park, "LEAST_BYTES", 0)
    decoder = gpu_decoder()
    set_way(decoder, way)
    ids = torch.arange(TOKENS, device="cuda") % 97
    positions, borders, longest = stream(TOKENS // 2, TOKENS // 2)
    positions, borders = positions.cuda(), borders.cuda()
    factors = list(lora.adapter_parameters(decoder).values())

    def work() -> None:
        decoder(ids, positions, borders, longest).float().square().sum().backward()

    decoder.zero_grad()
    work()
    wanted = [factor.grad.clone() for factor in factors if factor.grad is not None]
    decoder.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    recorded = [factor.grad for factor in factors if factor.grad is not None]
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        for met, one in zip(recorded, wanted, strict=True):
            assert (met - one).norm() <= 0.02 * one.norm()
        for factor in factors:
            factor.grad = None
        run(decoder, "cuda")
        for factor, met in zip(factors, recorded, strict=True):
            factor.grad = met


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("halves", [0, 1])
def test_twice_as_many_parked_layers_take_no_more_of_the_gpu(halves: int) -> None:
    peaks = []
    for layers in (6, 12):
        config = replace(TINY, num_layers=layers, head_dim=64, hidden_size=256, intermediate_size=512)
        decoder = random_decoder(config, dtype=torch.bfloat16).requires_grad_(False)
        lora.attach(decoder, LoraOptions(r=8), seed=1)
        decoder.to("cuda").train()
        set_way(decoder, (layers, halves * layers, layers, 4096, 0))
        ids = torch.arange(2**15, device="cuda") % 97
        positions, borders, longest = stream(*[2048] * 16)
        for _ in range(2):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            decoder(ids, positions.cuda(), borders.cuda(), longest).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    # A layer's own half would be 20 MiB; scales of norms, and gradients of factors, stay.
    assert peaks[1] - peaks[0] <= 6 * 2**20
