"""What ops are said to take while they run is what tensors take, and a plan counts it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_memory import traced
from helpers_models import CONFIGS, TINY, random_decoder, stream

from whippet import lora
from whippet.kernels import block_attention, int8
from whippet.model import scratch
from whippet.model.activations import highest_bytes, kept_bytes
from whippet.options import LoraOptions
from whippet.train.limits import Limits
from whippet.train.memory import Workload, peak_bytes

TARGETS = LoraOptions().targets


def test_constants_are_those_of_the_kernels() -> None:
    kernels = (block_attention.BLOCK, int8.MOST_SUMS, int8.FEWEST_ROWS)
    assert kernels == (scratch.BLOCK, scratch.MOST_SUMS, scratch.FEWEST_ROWS)


@pytest.mark.parametrize(
    ("documents", "length", "heads", "head_dim", "window"),
    [(1, 1024, (4, 2), 16, 0), (3, 512, (8, 4), 64, 0), (8, 100, (8, 4), 64, 0), (1, 1500, (8, 1), 32, 300)],
)
def test_attention_by_blocks(documents: int, length: int, heads: tuple[int, int], head_dim: int, window: int) -> None:
    config = replace(TINY, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, windows=(window, window))
    shapes = [(documents, length, number, head_dim) for number in (heads[0], heads[1], heads[1])]
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes)
    out = block_attention.block_attention(q, k, v, 0.1, window, 50.0)
    grad = torch.randn_like(out)
    _, _, most = traced(lambda: torch.autograd.grad(out, (q, k, v), grad))
    counted = scratch.block_attention_bytes(config, documents * length, length)
    assert most == pytest.approx(counted + q.nbytes, rel=0.02)


@pytest.mark.parametrize(
    ("tokens", "rows", "columns"), [(64, 512, 256), (8192, 2048, 64), (512, 64, 4096), (4500, 4096, 1500)]
)
def test_products_with_int8_weights(tokens: int, rows: int, columns: int) -> None:
    """Of sums, of rounding, of all rows at once or some."""
    weight = int8.quantize_int8(torch.randn(rows, columns))
    x, grad = torch.randn(tokens, columns).bfloat16(), torch.randn(tokens, rows).bfloat16()
    wide = grad.float()
    x[tokens // 2, 3] = 50.0  # one column is an outlier's
    y, _, most = traced(lambda: int8.product(x, weight))
    counted = scratch.int8_product_bytes(tokens, rows, columns, 2, "cpu")
    counted += 0 if counted == x.nbytes else y.nbytes  # but in the search for outliers, before there is a y
    assert counted <= most <= 1.02 * counted + 16 * rows
    _, _, most = traced(lambda: int8.input_gradient(grad, weight))
    counted = scratch.product_bytes(rows * columns, "int8", 2, beside=x.nbytes)
    assert counted <= most <= 1.2 * counted  # a CPU's product in 16 bit packs what it reads
    _, _, most = traced(lambda: int8.input_gradient(wide, weight))
    counted = scratch.product_bytes(rows * columns, "int8", 4, beside=2 * x.nbytes)
    assert most == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("lengths", [(2048,), (512,) * 4])
def test_a_layer_with_a_cap_takes_what_is_planned(lengths: tuple[int, ...]) -> None:
    """Attention is its highest moment here, in every way of keeping."""
    config = replace(CONFIGS["gemma2"], num_layers=4, windows=(9, 0, 9, 0), intermediate_size=128)
    decoder = random_decoder(config).requires_grad_(False)
    lora.attach(decoder, LoraOptions(r=2), seed=0)
    kept, tokens = kept_bytes(config, 4, 2, TARGETS), sum(lengths)
    ids = torch.arange(tokens) % 97
    for recompute in (0, 4):
        decoder.train().recompute = recompute
        decoder(ids, *stream(*lengths)).sum().backward()
        hidden, held, _ = traced(lambda: decoder(ids, *stream(*lengths)))
        _, _, most = traced(lambda hidden=hidden: hidden.sum().backward())  # type: ignore[misc]
        way, below = ("whole", kept.x) if recompute else ("kept", kept.whole)
        layer = highest_bytes(
            config, "fp32", 4, kept, way, tokens, in_place=False, device="cpu", blocks_of=max(lengths)
        )  # type: ignore[arg-type]
        assert held + most == pytest.approx(3 * below * tokens + layer, rel=0.03)
        without = highest_bytes(config, "fp32", 4, kept, way, tokens, in_place=False, device="cpu")  # type: ignore[arg-type]
        assert without < 0.5 * layer


def test_a_plan_counts_both() -> None:
    """A Gemma 2 without flash-attn-4; and an 8B over int8, whose weights are made through fp32."""
    gemma = replace(CONFIGS["gemma2"], hidden_size=2304, intermediate_size=2304, num_heads=8, num_kv_heads=4,
                    head_dim=256, windows=(4096, 0))  # fmt: skip
    work = Workload(gemma, "nf4", 2, LoraOptions(), "adamw", "cuda", 8192, 8192, 1.0)
    limits = Limits(8192, 2, 64, tile=4096, park=2)
    more = peak_bytes(replace(work, by_blocks=True), limits) - peak_bytes(work, limits)
    assert 0.5 * 20 * 8 * 256 * 8192 < more < 1.1 * 20 * 8 * 256 * 8192
    llama = replace(TINY, hidden_size=4096, intermediate_size=14336, num_heads=32, num_kv_heads=8, head_dim=128)
    work = Workload(llama, "int8", 2, LoraOptions(), "adamw", "cuda", 256, 256, 1.0)
    nothing = replace(work, base="bf16")
    moving = [peak_bytes(one, Limits(256, 0, 64)) for one in (work, nothing)]
    # 6 bytes of the 117 million weights of gate and up; the weights themselves take half.
    assert moving[0] - moving[1] > 6 * 2 * 14336 * 4096 - 2 * 218e6
