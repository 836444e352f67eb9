"""Attention over pages: the reference on the CPU, and the kernel compiled and run on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels.paged_cases import LENGTHS, check_alone, check_paged, make
from torch import Tensor

from whippet.kernels import paged_attention as paged
from whippet.kernels import triton_jit

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_triton = pytest.mark.skipif(triton_jit.triton is None, reason="triton is not installed")


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize(("window", "group", "head_dim"), [(0, 4, 64), (20, 5, 24), (300, 1, 96)])
def test_the_reference(window: int, group: int, head_dim: int, softcap: float | None) -> None:
    how = {"window": window, "softcap": softcap}
    check_paged(LENGTHS, torch.float32, "cpu", head_dim=head_dim, group=group, kv_heads=1, **how)


def by_row(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int,
    cap: float | None,
) -> Tensor:
    """As ``Rows`` asks for it on a CPU."""
    known = paged.lying(table, lengths, keys.shape[1])
    return paged.paged_attention(q, keys, values, table, lengths, scale, window, cap, known=known)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize(("window", "group", "head_dim"), [(0, 4, 64), (20, 5, 24)])
def test_row_by_row(window: int, group: int, head_dim: int, softcap: float | None) -> None:
    how = {"window": window, "softcap": softcap, "attend": by_row}
    check_paged(LENGTHS, torch.float32, "cpu", head_dim=head_dim, group=group, kv_heads=2, **how)


@pytest.mark.parametrize("window", [0, 70])
def test_row_by_row_a_row_is_the_same_beside_others(window: int) -> None:
    check_alone(LENGTHS, torch.bfloat16, "cpu", window=window, attend=by_row)


@pytest.mark.parametrize("window", [0, 70])
def test_pages_in_order_are_read_where_they_lie(window: int) -> None:
    sizes = {"head_dim": 8, "heads": 4, "kv_heads": 2, "page": 64}
    q, keys, values, _, lengths = make((130, 64), torch.float32, "cpu", **sizes)
    keys, values = keys.nan_to_num(), values.nan_to_num()
    table = torch.tensor([[2, 3, 4], [1, 0, 0]], dtype=torch.int32)
    assert [mine.start for mine in paged.lying(table, lengths, 64)] == [128, 64]
    assert paged.lying(table.flip(1), lengths, 64)[0].start is None
    whole = paged.paged_attention_reference(q, keys, values, table, lengths, 0.3, window)
    assert (by_row(q, keys, values, table, lengths, 0.3, window, None) - whole).abs().max() < 1e-6


def test_what_is_gathered_ends_where_the_row_does() -> None:
    _, keys, _, table_BN, lengths_B = make((70, 3, 0), torch.float32, "cpu", head_dim=8, heads=2, kv_heads=1, page=16)
    rows_BTKD = paged.gathered(keys, table_BN, lengths_B)
    assert rows_BTKD.shape == (3, 16 * table_BN.shape[1], 1, 8)
    for row, length in enumerate((70, 3, 0)):
        assert rows_BTKD[row, :length].ne(0).all() and not rows_BTKD[row, length:].any()
    assert keys.isnan().any()


@needs_triton
@pytest.mark.parametrize(
    ("card", "head_dim", "how"),
    [
        ("T4", 256, {}), ("A100", 128, {}), ("H100", 128, {}), ("H100", 256, {"WINDOW": 4096, "CAPPED": True}),
    ],
)  # fmt: skip
def test_the_kernels_compile(card: str, head_dim: int, how: dict[str, Any]) -> None:
    """And a T4 has the memory that they want."""
    from kernels.test_compile import compile_for

    sizes = {"HEADS": 32, "D": head_dim, "WIDTH": head_dim, "SPAN": paged.SPAN, "WINDOW": 0}
    tile = paged._tile(64, head_dim, torch.bfloat16)
    span = {
        "q_ptr": "*h", "keys_ptr": "*h", "values_ptr": "*h", "table_ptr": "*i32", "lengths_ptr": "*i32",
        "stats_ptr": "*fp32", "parts_ptr": "*fp32", "scale": "fp32", "softcap": "fp32", "table_stride": "i32",
        "page_stride": "i32", "token_stride": "i32", "head_stride": "i32", "num_spans": "i32", **sizes, "GROUP": 4,
        "ROWS": 16, "PAGE": 64, "TILE": tile, "CAPPED": False,
    }  # fmt: skip
    join = {
        "stats_ptr": "*fp32", "parts_ptr": "*fp32", "lengths_ptr": "*i32", "out_ptr": "*h", "num_spans": "i32", **sizes
    }  # fmt: skip
    for kernel, arguments in ((paged._span_kernel, span), (paged._join_kernel, join)):
        compiled = compile_for(kernel, arguments | {key: how[key] for key in how if key in arguments}, card)
        assert compiled.metadata.shared <= 64 * 1024


dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
"""In fp32 it is torch's own attention."""


@gpu
@needs_gpu
@dtypes
@pytest.mark.parametrize("head_dim", [8, 24, 64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 5, 8])
def test_lengths_and_heads(head_dim: int, group: int, dtype: torch.dtype) -> None:
    check_paged((*LENGTHS, 3000), dtype, "cuda", head_dim=head_dim, group=group)


@gpu
@needs_gpu
@dtypes
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [0, 1, 20, 64, 300])
def test_windows_and_caps(window: int, softcap: float | None, dtype: torch.dtype) -> None:
    check_paged((*LENGTHS, 3000), dtype, "cuda", head_dim=128, window=window, softcap=softcap)


@gpu
@needs_gpu
@dtypes
@pytest.mark.parametrize("window", [0, 70])
def test_a_row_does_not_depend_on_the_rows_beside_it(window: int, dtype: torch.dtype) -> None:
    check_alone((*LENGTHS, 3000), dtype, "cuda", window=window)
