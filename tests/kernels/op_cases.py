"""One check an op, against its definition, on any device: the tests on the CPU, under Triton's interpreter and on a GPU
all call these. Shapes are odd on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tolerance import assert_accurate, check_op
from torch import Tensor
from torch.nn import functional

from whippet.kernels import gated_linear as gated_linear_module
from whippet.kernels.attention import naive_attention, packed_attention
from whippet.kernels.frozen_linear import frozen_linear, frozen_linear_reference
from whippet.kernels.gated_linear import gated_linear, gated_linear_reference
from whippet.kernels.gated_mlp import Activation, gated
from whippet.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from whippet.kernels.lora_factors import LoraPart, Stacked
from whippet.kernels.nf4 import NF4Tensor, dequantize_nf4
from whippet.kernels.qk_norm import norm_and_rope
from whippet.kernels.rms_norm import add_rms_norm, rms_norm
from whippet.kernels.rope import rope

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 64), (63, 100), (123, 431))
EPS = 1e-5


def random(*shape: int, dtype: torch.dtype, device: str, seed: int, grad: bool = True, strided: bool = False) -> Tensor:
    """Normal numbers; ``strided`` leaves a gap after each row, as a slice of a wider tensor has."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(device, dtype)
    if strided:
        wide = torch.full((*shape[:-1], shape[-1] + 3), float("nan"), dtype=dtype, device=device)
        wide[..., : shape[-1]] = values
        values = wide[..., : shape[-1]]
    return values.requires_grad_(grad)


def plain_norm(x: Tensor, weight: Tensor, *, offset: bool = False) -> Tensor:
    """The definition, in fp32 or better."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return (normed * (1 + weight)).to(x.dtype) if offset else weight.to(x.dtype) * normed.to(x.dtype)


def check_offset_norm(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    x_TH, residual_TH = (random(*shape, dtype=dtype, device=device, seed=seed) for seed in (0, 2))
    weight_H = random(shape[1], dtype=torch.float32, device=device, seed=1)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return plain_norm(x, weight, offset=True)

    check_op(lambda x, weight: rms_norm(x, weight, EPS, offset=True), plain, [x_TH, weight_H])
    check_op(
        lambda x, residual, weight: add_rms_norm(x, residual, weight, EPS, offset=True),
        lambda x, residual, weight: (plain(x + residual, weight), x + residual),
        [x_TH, residual_TH, weight_H],
    )


def check_norm_and_rope(
    num_tokens: int, head_dim: int, dtype: torch.dtype, device: str, *, offset: bool, strided: bool = False
) -> None:
    heads = 6, 2
    qkv_TE = random(num_tokens, 10 * head_dim, dtype=dtype, device=device, seed=0, strided=strided)
    weights = [random(head_dim, dtype=torch.float32, device=device, seed=seed) for seed in (1, 2)]
    angle_TD = random(num_tokens, head_dim // 2, dtype=torch.float32, device=device, seed=3, grad=False)
    tables = 1.2 * angle_TD.cos(), 1.2 * angle_TD.sin()  # LongRoPE's have a factor

    def plain(qkv: Tensor, *weights: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (-1, head_dim)).split((heads[0], heads[1], heads[1]), 1)
        normed = [plain_norm(x, weight, offset=offset) for x, weight in zip((q, k), weights, strict=True)]
        return plain_rope(torch.cat([*normed, v], 1).flatten(1), *tables, 8, head_dim)

    def op(qkv: Tensor, *weights: Tensor) -> Tensor:
        return norm_and_rope(qkv, weights[0], weights[1], EPS, *tables, *heads, offset=offset)

    check_op(op, plain, [qkv_TE, *weights])
    for weight in weights:
        weight.requires_grad_(False)
    check_op(op, plain, [qkv_TE, *weights])


def check_rms_norm(shape: tuple[int, int], dtype: torch.dtype, device: str, *, strided: bool = False) -> None:
    x_TH = random(*shape, dtype=dtype, device=device, seed=0, strided=strided)
    weight_H = random(shape[1], dtype=torch.float32, device=device, seed=1)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return plain_norm(x, weight)

    check_op(lambda x, weight: rms_norm(x, weight, EPS), plain, [x_TH, weight_H])
    check_op(lambda x, weight: rms_norm(x, weight, EPS, 16), plain, [x_TH, weight_H])
    roomy_TH = rms_norm(x_TH, weight_H, EPS, 16)
    assert roomy_TH.stride() == (shape[1] + 16, 1) or len(roomy_TH) == 1
    residual_TH = random(*shape, dtype=dtype, device=device, seed=2, strided=strided)
    check_op(
        lambda x, residual, weight: add_rms_norm(x, residual, weight, EPS),
        lambda x, residual, weight: (plain(x + residual, weight), x + residual),
        [x_TH, residual_TH, weight_H],
    )
    check_op(
        lambda x, weight: add_rms_norm(x, None, weight, EPS),
        lambda x, weight: (plain(x, weight), x + 0),
        [x_TH, weight_H],
    )


def check_rope(num_tokens: int, head_dim: int, dtype: torch.dtype, device: str, *, strided: bool = False) -> None:
    num_heads, num_kv_heads = 6, 2
    width = (num_heads + 2 * num_kv_heads) * head_dim
    qkv_TE = random(num_tokens, width, dtype=dtype, device=device, seed=0, strided=strided)
    angle_TD = random(num_tokens, head_dim // 2, dtype=torch.float32, device=device, seed=1, grad=False)

    def plain(qkv: Tensor) -> Tensor:
        return plain_rope(qkv, angle_TD.cos(), angle_TD.sin(), num_heads + num_kv_heads, head_dim)

    check_op(lambda x: rope(x, angle_TD.cos(), angle_TD.sin(), num_heads, num_kv_heads, head_dim), plain, [qkv_TE])


def plain_rope(qkv: Tensor, cos_TD: Tensor, sin_TD: Tensor, turned_heads: int, head_dim: int) -> Tensor:
    cos, sin = (torch.cat([table, table], -1).to(qkv.dtype).unsqueeze(1) for table in (cos_TD, sin_TD))
    heads = qkv.unflatten(-1, (-1, head_dim))
    first, second = heads.chunk(2, dim=-1)
    turned = heads * cos + torch.cat([-second, first], -1) * sin
    return torch.cat([turned[:, :turned_heads], heads[:, turned_heads:]], 1).flatten(1)


def plain_gated(x: Tensor, activation: Activation) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up


def check_gated(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    *,
    strided: bool = False,
    activation: Activation = "silu",
) -> None:
    gate_up_TF2 = random(shape[0], 2 * shape[1], dtype=dtype, device=device, seed=0, strided=strided)
    check_op(lambda x: gated(x, activation), lambda x: plain_gated(x, activation), [gate_up_TF2])


def check_attention(
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: str,
    *,
    kv_heads: int = 2,
    window: int = 0,
    softcap: float | None = None,
    head_dim: int = 16,
) -> None:
    """Queries, keys and values are views of one fused tensor, as in the decoder."""
    num_heads, total = 4, sum(lengths)
    borders = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    fused = random(total, num_heads + 2 * kv_heads, head_dim, dtype=dtype, device=device, seed=0)

    def op(x: Tensor) -> Tensor:
        q, k, v = x.split((num_heads, kv_heads, kv_heads), dim=1)
        return packed_attention(q, k, v, borders, max(lengths), 0.3, window, softcap)

    def plain(x: Tensor) -> Tensor:
        q, k, v = x.split((num_heads, kv_heads, kv_heads), dim=1)
        if softcap is None and window:  # torch's attention itself, which rounds otherwise than its parts do
            return masked_attention(q, k, v, lengths, 0.3, window)
        return naive_attention(q, k, v, borders, 0.3, window, softcap)

    check_op(op, plain, [fused])


def masked_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float, window: int) -> Tensor:
    """All documents at once, under one mask [T, T]."""
    same = torch.block_diag(*(torch.ones(length, length) for length in lengths)).bool()
    mask = (same.tril() & ~same.tril(-window)).to(q.device)
    by_head = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
    out = functional.scaled_dot_product_attention(
        by_head[0], by_head[1], by_head[2], attn_mask=mask, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def check_frozen_linear(
    weight: Tensor | NF4Tensor, dtype: torch.dtype, device: str, *, dropped: str = "none", room: bool = False
) -> None:
    """``dropped``: ``none``, ``shared`` (one dropped input for both parts) or ``each``. ``room``: behind rows of x."""
    num_outputs, num_inputs = weight.shape
    border = num_outputs // 3
    x_TK = random(63, num_inputs, dtype=dtype, device=device, seed=0)
    bias_N = random(num_outputs, dtype=torch.float32, device=device, seed=1, grad=False)
    sizes = ((8 if room else 4, slice(0, border), 2.0), (8, slice(border, num_outputs), 0.5))
    factors = [
        random(*shape, dtype=torch.float32, device=device, seed=seed)
        for seed, (rank, rows, _) in enumerate(sizes)
        for shape in ((rank, num_inputs), (rows.stop - rows.start, rank))
    ]
    count = {"none": 0, "shared": 1, "each": 2}[dropped]
    inputs = [random(63, num_inputs, dtype=dtype, device=device, seed=9 + seed) for seed in range(count)]

    def parts(factors: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[LoraPart]:
        sources: list[Tensor | None] = [None, None] if not inputs else [inputs[0], inputs[-1]]
        return [
            LoraPart(factors[2 * i], factors[2 * i + 1], rows, scale, sources[i])
            for i, (_, rows, scale) in enumerate(sizes)
        ]

    def plain(x: Tensor, *rest: Tensor) -> Tensor:
        dense = dequantize_nf4(weight, torch.float32) if isinstance(weight, NF4Tensor) else weight
        # Rounded to the compute dtype as the op rounds it, then exact in the double-precision run.
        return frozen_linear_reference(x, dense.to(dtype).to(x.dtype), bias_N.to(dtype), parts(rest[:4], rest[4:]))

    def op(x: Tensor, *rest: Tensor) -> Tensor:
        if room:
            x = functional.pad(x, (0, 16), value=float("nan"))[:, :num_inputs]
        return frozen_linear(x, weight, bias_N, parts(rest[:4], rest[4:]), room=room)

    check_op(op, plain, [x_TK, *factors, *inputs])


def check_gated_linear(
    weight: NF4Tensor | Tensor,
    dtype: torch.dtype,
    device: str,
    rows: int = 63,
    ranks: Sequence[int] = (4, 8),
    activation: Activation = "silu",
) -> None:
    """One part over a projection, or two, as no model has, but as the op allows."""
    num_outputs, width = weight.shape
    borders = [0, num_outputs // 3, num_outputs] if len(ranks) == 2 else [0, num_outputs]
    gate_up_TF2 = random(rows, 2 * width, dtype=dtype, device=device, seed=0)
    sizes = [
        (rank, slice(start, stop), scale)
        for rank, start, stop, scale in zip(ranks, borders, borders[1:], (2.0, 0.5), strict=False)
    ]
    factors = [
        random(*shape, dtype=torch.float32, device=device, seed=seed)
        for seed, (rank, part, _) in enumerate(sizes)
        for shape in ((rank, width), (part.stop - part.start, rank))
    ]

    def parts(factors: Sequence[Tensor]) -> list[LoraPart]:
        return [LoraPart(factors[2 * i], factors[2 * i + 1], rows, scale) for i, (_, rows, scale) in enumerate(sizes)]

    def op(x: Tensor, *factors: Tensor) -> Tensor:
        stacked = Stacked(parts(factors), num_outputs, dtype).renewed(parts(factors))
        # A leaf must not be overwritten: in a model the input is what another op has made.
        return gated_linear(x.clone(), weight, None, parts(factors), stacked, activation=activation)

    def plain(x: Tensor, *factors: Tensor) -> Tensor:
        dense = dequantize_nf4(weight, torch.float32) if isinstance(weight, NF4Tensor) else weight
        return gated_linear_reference(x, dense.to(dtype).to(x.dtype), None, parts(factors), activation)

    check_op(op, plain, [gate_up_TF2, *factors])


def within_nan(values: Tensor, more_columns: int = 3, more_rows: int = 40) -> tuple[Tensor, Tensor]:
    """A copy that lies in the corner of a matrix of NaN, and where that is NaN."""
    num_rows, width = values.shape
    around = torch.full(
        (num_rows + more_rows, width + more_columns), float("nan"), dtype=values.dtype, device=values.device
    )
    inside = around[:num_rows, :width]
    inside.copy_(values)
    return inside, around


def assert_untouched(around: Tensor, num_rows: int, width: int) -> None:
    """Nothing was written behind rows or below them."""
    assert bool(around[num_rows:].isnan().all()) and bool(around[:, width:].isnan().all())


def check_gated_backward(
    tokens: int, width: int, rank: int, dtype: torch.dtype, device: str, activation: Activation = "silu"
) -> None:
    """The pass that writes gradients over what it reads, with du · A (without for rank 0), NaN lying all around."""
    shapes = ((tokens, width), (tokens, 2 * width), (tokens, rank), (rank, width))
    values = [random(*shape, dtype=dtype, device=device, seed=seed, grad=False) for seed, shape in enumerate(shapes)]
    wide = [value.double() for value in values]

    def both(dhidden: Tensor, gate_up: Tensor, du: Tensor, a: Tensor) -> list[Tensor]:
        dhidden = dhidden + du @ a if rank else dhidden
        gate, up = (gate_up if gate_up.dtype == torch.float64 else gate_up.float()).chunk(2, dim=-1)
        with torch.enable_grad():
            gate.requires_grad_(True)
            active = plain_gated(torch.cat([gate, torch.ones_like(gate)], 1), activation)
            (slope,) = torch.autograd.grad(active.sum(), gate)
        gradients = dhidden * up * slope, dhidden * active.detach()
        return [(active.detach() * up).to(dhidden.dtype), torch.cat(gradients, 1).to(dhidden.dtype)]

    dhidden, around_dhidden = within_nan(values[0], 0)
    gate_up, around_gate_up = within_nan(values[1])
    du, a = (within_nan(value, 5)[0] for value in values[2:])
    if rank:
        gated_linear_module.backward_triton(dhidden, gate_up, du, a, activation=activation)
    else:
        gated_linear_module.backward_triton(dhidden, gate_up, activation=activation)
    for actual, plain, exact in zip((dhidden, gate_up), both(*values), both(*wide), strict=True):
        assert_accurate(actual, plain, exact)
    assert_untouched(around_dhidden, tokens, width)
    assert_untouched(around_gate_up, tokens, 2 * width)


def check_cross_entropy(
    rows: int, vocabulary: int, dtype: torch.dtype, device: str, chunk_rows: int, softcap: float | None = None
) -> None:
    hidden_NH = random(rows, 48, dtype=dtype, device=device, seed=0)
    head_VH = random(vocabulary, 48, dtype=dtype, device=device, seed=1)
    generator = torch.Generator().manual_seed(2)
    labels_N = torch.randint(0, vocabulary, (rows,), generator=generator).to(device)
    weights_N = torch.rand(rows, generator=generator).to(device)

    def plain(hidden: Tensor, head: Tensor) -> Tensor:
        if hidden.dtype != torch.float64:
            return linear_cross_entropy_reference(hidden, head, labels_N, weights_N, softcap).loss_sum
        logits = hidden @ head.T
        logprobs = (logits if softcap is None else softcap * (logits / softcap).tanh()).log_softmax(-1)
        return -(weights_N * logprobs.gather(1, labels_N.view(-1, 1)).view(-1)).sum()

    check_op(
        lambda hidden, head: linear_cross_entropy(hidden, head, labels_N, weights_N, chunk_rows, softcap).loss_sum,
        plain,
        [hidden_NH, head_VH],
    )
