"""Attention of one new token a row over keys and values that lie in pages: what a step of decoding computes.

    out_b = sum over s < length_b of softmax_s(scale · q_b · k_s) · v_s

with a window (only the last ``window`` tokens) or a soft cap (``softcap.py``) where the layer has one. Token s of row b
lies in place s mod page of page ``table[b, s // page]``. A program attends from the query heads that share one
key-value head to ``SPAN`` tokens; a second kernel weighs the spans' results by their sums (Flash-Decoding, Dao et al.
2023, https://pytorch.org/blog/flash-decoding/). Where spans begin depends on the token's place alone, so a row's result
is the same to the bit whatever rows lie beside it and however long those are.

In: q [B, Q, D]; keys and values [P, S, K, D] (P pages of S tokens); table int32 [B, N]; lengths int32 [B], the newest
token among them; 0 for a row that only fills the batch up, whose result is 0. Out: [B, Q, D] in q's dtype. There is no
gradient: it serves inference.

Shapes: B rows, Q query heads, K key-value heads, D head size, P pages, S tokens of a page, N pages of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from whippet.kernels import triton_jit
from whippet.kernels.attention import cached_attention
from whippet.kernels.triton_jit import tl

SPAN = 256
"""Tokens of one program, and of how many a page must be a part."""


@dataclass(frozen=True)
class Lying:
    """Where the tokens of a row lie, known to the host."""

    pages_N: Tensor
    length: int
    start: int | None
    """Its first token's place among those of all pages, if its pages follow one another in order."""


def lying(table_BN: Tensor, lengths_B: Tensor, page: int) -> list[Lying]:
    """For each row of a table that lies on the CPU; ``page``: tokens of one."""
    found = []
    for row, length in enumerate(lengths_B.tolist()):
        pages_N = table_BN[row, : -(-length // page)]
        pages = pages_N.tolist()
        together = pages == list(range(pages[0], pages[0] + len(pages))) if pages else False
        found.append(Lying(pages_N, length, pages[0] * page if together else None))
    return found


def paged_attention(
    q_BQD: Tensor,
    keys_PSKD: Tensor,
    values_PSKD: Tensor,
    table_BN: Tensor,
    lengths_B: Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
    *,
    known: Sequence[Lying] | None = None,
) -> Tensor:
    """Attention of each row's newest token to all of the row. ``known``: table and lengths, on the CPU, as ``lying``
    tells them."""
    # In fp32 tensor cores and their exponential are less exact than torch is.
    if triton_jit.usable(q_BQD) and q_BQD.dtype != torch.float32:
        return _launch(q_BQD, keys_PSKD, values_PSKD, table_BN, lengths_B, scale, window, softcap or 0.0)
    if known is not None and softcap is None:
        return _by_row(q_BQD, keys_PSKD, values_PSKD, known, scale, window)
    return paged_attention_reference(
        q_BQD, keys_PSKD, values_PSKD, table_BN, lengths_B, scale, window=window, softcap=softcap
    )


def paged_attention_reference(
    q_BQD: Tensor,
    keys_PSKD: Tensor,
    values_PSKD: Tensor,
    table_BN: Tensor,
    lengths_B: Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> Tensor:
    """The same over keys and values that are gathered first."""
    keys_BTKD, values_BTKD = (gathered(pages_PSKD, table_BN, lengths_B) for pages_PSKD in (keys_PSKD, values_PSKD))
    out_B1QD = cached_attention(q_BQD[:, None], keys_BTKD, values_BTKD, lengths_B, scale, window, softcap)
    # Nothing is seen by a row without tokens, and the softmax of nothing is NaN.
    return out_B1QD[:, 0].masked_fill((lengths_B == 0)[:, None, None], 0.0)


def _by_row(
    q_BQD: Tensor, keys_PSKD: Tensor, values_PSKD: Tensor, known: Sequence[Lying], scale: float, window: int
) -> Tensor:
    """Each row alone, over its own tokens and no more: so it is the same to the bit whatever lies beside it."""
    kv_heads, parts = keys_PSKD.shape[2], []
    keys_1KTD, values_1KTD = _heads_first(keys_PSKD), _heads_first(values_PSKD)
    for row, mine in enumerate(known):
        if not mine.length:
            parts.append(torch.zeros_like(q_BQD[row : row + 1]))
            continue
        seen = min(mine.length, window or mine.length)
        if mine.start is None:
            k_1KSD, v_1KSD = _heads_first(keys_PSKD[mine.pages_N]), _heads_first(values_PSKD[mine.pages_N])
        else:
            k_1KSD, v_1KSD = keys_1KTD, values_1KTD
        first = (mine.start or 0) + mine.length - seen
        # Queries that share a key-value head are so many queries of it; none is after another, so there is no mask.
        q_1KGD = q_BQD[row : row + 1].unflatten(1, (kv_heads, -1))
        out_1KGD = functional.scaled_dot_product_attention(
            q_1KGD, k_1KSD.narrow(2, first, seen), v_1KSD.narrow(2, first, seen), scale=scale
        )
        parts.append(out_1KGD.flatten(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _heads_first(pages_PSKD: Tensor) -> Tensor:
    """A view of pages that follow one another, [1, K, P · S, D]."""
    return pages_PSKD.flatten(0, 1).transpose(0, 1).unsqueeze(0)


def gathered(pages_PSKD: Tensor, table_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """What the pages of each row hold, in their order, [B, N · S, K, D]; zeros from the row's length on. What lies
    there is of others, NaN it may be, and that times a weight of 0 is NaN."""
    rows_BTKD = pages_PSKD[table_BN.long()].flatten(1, 2)
    outside_BT = torch.arange(rows_BTKD.shape[1], device=lengths_B.device) >= lengths_B[:, None]
    return rows_BTKD.masked_fill_(outside_BT[:, :, None, None], 0.0)


def _launch(
    q_BQD: Tensor,
    keys_PSKD: Tensor,
    values_PSKD: Tensor,
    table_BN: Tensor,
    lengths_B: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    rows, heads, head_dim = q_BQD.shape
    page, kv_heads = keys_PSKD.shape[1:3]
    assert SPAN % page == 0 and page == triton_jit.power_of_two(page), page
    group, spans = heads // kv_heads, -(-table_BN.shape[1] * page // SPAN)
    q_BQD = q_BQD.contiguous()
    # Largest score, sum of the weights and weighed values of each span.
    stats_BQN2 = torch.empty(rows, heads, spans, 2, dtype=torch.float32, device=q_BQD.device)
    parts_BQND = torch.empty(rows, heads, spans, head_dim, dtype=torch.float32, device=q_BQD.device)
    width = max(16, triton_jit.power_of_two(head_dim))
    sizes = {"HEADS": heads, "D": head_dim, "WIDTH": width}
    _span_kernel[(rows, kv_heads, spans)](
        q_BQD, keys_PSKD, values_PSKD, table_BN, lengths_B, stats_BQN2, parts_BQND, scale, softcap,
        table_BN.stride(0), keys_PSKD.stride(0), keys_PSKD.stride(1), keys_PSKD.stride(2), spans,
        **sizes, GROUP=group, ROWS=max(16, triton_jit.power_of_two(group)), PAGE=page, SPAN=SPAN,
        TILE=_tile(page, width, q_BQD.dtype), WINDOW=window, CAPPED=softcap > 0, num_warps=4, num_stages=2,
    )  # fmt: skip
    out_BQD = torch.empty_like(q_BQD)
    _join_kernel[(rows, heads)](
        stats_BQN2, parts_BQND, lengths_B, out_BQD, spans, **sizes, SPAN=SPAN, WINDOW=window, num_warps=1
    )
    return out_BQD


def _tile(page: int, width: int, dtype: torch.dtype) -> int:
    """Tokens that a program looks at together. Of wide heads few: a T4 has 64 KiB of memory for them."""
    return min(64, page, max(16, 2**14 // (width * dtype.itemsize)))


@triton_jit.jit
def _span_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    keys_ptr,
    values_ptr,
    table_ptr,
    lengths_ptr,
    stats_ptr,
    parts_ptr,
    scale,
    softcap,
    table_stride,
    page_stride,
    token_stride,
    head_stride,
    num_spans,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PAGE: tl.constexpr,
    SPAN: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
):
    row, kv_head, span = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + row)
    end = tl.minimum(length, (span + 1) * SPAN)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    begin = tl.maximum(span * SPAN, first // TILE * TILE)
    if begin < end:
        heads, channels = tl.arange(0, ROWS), tl.arange(0, WIDTH)
        real = (heads < GROUP)[:, None] & (channels < D)[None, :]
        q_places = ((row * HEADS + kv_head * GROUP + heads) * D)[:, None] + channels[None, :]
        q = tl.load(q_ptr + q_places, mask=real, other=0.0)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        weighed = tl.zeros([ROWS, WIDTH], tl.float32)
        for start in range(begin, end, TILE):
            page = tl.load(table_ptr + row * table_stride + start // PAGE).to(tl.int64)
            tokens = start + tl.arange(0, TILE)
            seen = (tokens < length) & (tokens >= first)
            base = page * page_stride + kv_head * head_stride
            places = base + (tokens % PAGE)[:, None] * token_stride + channels[None, :]
            inside = seen[:, None] & (channels < D)[None, :]
            k = tl.load(keys_ptr + places, mask=inside, other=0.0)
            # fp32 is not cut down to tf32 where it is asked for.
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if CAPPED:
                # tanh by the exponential of a number that is not positive
                size = tl.exp(-2.0 * tl.abs(scores / softcap))
                bent = (1.0 - size) / (1.0 + size)
                scores = softcap * tl.where(scores < 0, -bent, bent)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            shrunk = tl.exp(largest - higher)
            total = total * shrunk + tl.sum(weights, 1)
            v = tl.load(values_ptr + places, mask=inside, other=0.0)
            weighed = weighed * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            largest = higher
        spot = (row * HEADS + kv_head * GROUP + heads) * num_spans + span
        tl.store(stats_ptr + spot * 2, largest, mask=heads < GROUP)
        tl.store(stats_ptr + spot * 2 + 1, total, mask=heads < GROUP)
        tl.store(parts_ptr + (spot * D)[:, None] + channels[None, :], weighed, mask=real)


@triton_jit.jit
def _join_kernel(  # type: ignore[no-untyped-def]
    stats_ptr,
    parts_ptr,
    lengths_ptr,
    out_ptr,
    num_spans,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
    WINDOW: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + row)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0) // SPAN
    channels = tl.arange(0, WIDTH)
    largest, total = float("-inf"), 0.0
    weighed = tl.zeros([WIDTH], tl.float32)
    for span in range(first, tl.cdiv(length, SPAN)):
        spot = (row * HEADS + head) * num_spans + span
        score, weight = tl.load(stats_ptr + spot * 2), tl.load(stats_ptr + spot * 2 + 1)
        part = tl.load(parts_ptr + spot * D + channels, mask=channels < D, other=0.0)
        higher = tl.maximum(largest, score)
        shrunk, kept = tl.exp(largest - higher), tl.exp(score - higher)
        total = total * shrunk + weight * kept
        weighed = weighed * shrunk + part * kept
        largest = higher
    out = tl.where(total > 0, weighed / tl.where(total > 0, total, 1.0), 0.0)
    tl.store(out_ptr + (row * HEADS + head) * D + channels, out.to(out_ptr.dtype.element_ty), mask=channels < D)
