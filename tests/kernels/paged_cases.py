"""Checks of attention over pages, on any device: the tests on the CPU, under Triton's interpreter and on a GPU all call
these. Whatever no row has a right to see is NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from kernels.op_cases import random
from tolerance import assert_accurate
from torch import Tensor

from whippet.kernels import paged_attention as paged
from whippet.kernels.attention import naive_attention
from whippet.kernels.paged_attention import paged_attention

LENGTHS = (700, 0, 1, 63, 64, 65, 255, 256, 257)
"""Around the borders of pages and of spans; 0 for a row that only fills the batch up."""


Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, int, float | None], Tensor]


def by_kernel(
    q_BQD: Tensor,
    keys: Tensor,
    values: Tensor,
    table_BN: Tensor,
    lengths_B: Tensor,
    scale: float,
    window: int,
    softcap: float | None,
) -> Tensor:
    """By the kernel in fp32 too, where a fault of a single token shows."""
    return paged._launch(q_BQD, keys, values, table_BN, lengths_B, scale, window, softcap or 0.0)


def make(
    lengths: Sequence[int], dtype: torch.dtype, device: str, *, head_dim: int, heads: int, kv_heads: int, page: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, table and lengths. Pages lie scattered among those of others; a table goes on, behind a
    row's own pages, with pages of others and the one that belongs to nobody."""
    counts = [-(-length // page) for length in lengths]
    total, columns = sum(counts) + 4, max(counts) + 2
    places = iter((1 + torch.randperm(total - 1, generator=torch.Generator().manual_seed(1))).tolist())
    table_BN = torch.zeros(len(lengths), columns, dtype=torch.int32)
    table_BN[:, 1::2] = total - 1
    keys, values = (torch.full((total, page, kv_heads, head_dim), float("nan"), dtype=dtype) for _ in range(2))
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = [next(places) for _ in range(count)]
        table_BN[row, :count] = torch.tensor(mine)
        for pool, seed in ((keys, 2 * row), (values, 2 * row + 1)):
            numbers = random(length, kv_heads, head_dim, dtype=dtype, device="cpu", seed=seed, grad=False)
            for number, start in zip(mine, range(0, length, page), strict=True):
                piece = numbers[start : start + page]
                pool[number, : len(piece)] = piece
    q_BQD = random(len(lengths), heads, head_dim, dtype=dtype, device="cpu", seed=99, grad=False)
    numbers_B = torch.tensor(lengths, dtype=torch.int32)
    return q_BQD.to(device), keys.to(device), values.to(device), table_BN.to(device), numbers_B.to(device)


def check_paged(
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: str,
    *,
    head_dim: int = 64,
    group: int = 4,
    kv_heads: int = 2,
    page: int = 64,
    window: int = 0,
    softcap: float | None = None,
    attend: Attend = paged_attention,
) -> None:
    """As accurate as plain torch over all rows; those without tokens are 0."""
    sizes = {"head_dim": head_dim, "heads": group * kv_heads, "kv_heads": kv_heads, "page": page}
    q_BQD, keys, values, table_BN, lengths_B = make(lengths, dtype, device, **sizes)
    how = head_dim**-0.5, window, softcap
    out_BQD = attend(q_BQD, keys, values, table_BN, lengths_B, *how)
    assert out_BQD.shape == q_BQD.shape and out_BQD.dtype == dtype
    assert not out_BQD[lengths_B == 0].any()
    plain, exact = [], []
    for row, length in ((row, length) for row, length in enumerate(lengths) if length):
        places = torch.arange(length, device=device)
        pages = table_BN[row].long()[places // page]
        mine = torch.zeros(length, *q_BQD.shape[1:], dtype=dtype, device=device)
        mine[-1] = q_BQD[row]
        inputs = mine, keys[pages, places % page], values[pages, places % page]
        borders = torch.tensor([0, length], device=device)
        plain.append(naive_attention(*inputs, borders, *how)[-1])
        exact.append(naive_attention(*(x.double() for x in inputs), borders, *how)[-1])
    assert_accurate(out_BQD[lengths_B > 0], torch.stack(plain), torch.stack(exact))


def check_alone(
    lengths: Sequence[int], dtype: torch.dtype, device: str, *, window: int = 0, attend: Attend = paged_attention
) -> None:
    """A row is the same to the bit whatever lies beside it, and however many pages the table has room for."""
    sizes = {"head_dim": 64, "heads": 4, "kv_heads": 2, "page": 64}
    q_BQD, keys, values, table_BN, lengths_B = make(lengths, dtype, device, **sizes)
    together = attend(q_BQD, keys, values, table_BN, lengths_B, 0.125, window, None)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        own = table_BN[one, : max(-(-length // 64), 1)]
        alone = attend(q_BQD[one], keys, values, own, lengths_B[one], 0.125, window, None)
        assert torch.equal(alone[0], together[row]), length
