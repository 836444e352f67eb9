"""``kernels/paged_attention.py`` under Triton's interpreter; started by ``test_triton.py``."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from kernels import paged_cases
from kernels.paged_cases import LENGTHS, by_kernel

from whippet.kernels import paged_attention, triton_jit

check_paged, check_alone = (
    partial(check, attend=by_kernel) for check in (paged_cases.check_paged, paged_cases.check_alone)
)


def test_lengths_around_borders() -> None:
    check_paged(LENGTHS, torch.float32, "cpu", kv_heads=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("head_dim", "group"), [(24, 5), (96, 1), (64, 8), (16, 4)])
def test_heads(head_dim: int, group: int, dtype: torch.dtype) -> None:
    check_paged((1, 0, 130, 257), dtype, "cpu", head_dim=head_dim, group=group)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [1, 20, 64, 300])
def test_windows_and_caps(window: int, softcap: float | None) -> None:
    check_paged((1, 65, 276, 0, 600), torch.float32, "cpu", kv_heads=1, window=window, softcap=softcap)


@pytest.mark.parametrize("page", [16, 128, 256])
def test_pages_of_other_sizes(page: int) -> None:
    check_paged((1, 16, 17, 300), torch.float32, "cpu", kv_heads=1, page=page)


@pytest.mark.parametrize("window", [0, 70])
def test_a_row_does_not_depend_on_the_rows_beside_it(window: int) -> None:
    check_alone((300, 0, 1, 64, 257), torch.float32, "cpu", window=window)


def test_16_bit_takes_the_kernel_and_fp32_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made = paged_cases.make((3, 70), torch.float16, "cpu", head_dim=16, heads=4, kv_heads=2, page=64)
    monkeypatch.setattr(triton_jit, "usable", lambda x: True)
    launched = []
    monkeypatch.setattr(paged_attention, "_launch", lambda q, *rest: launched.append(q.dtype))
    for dtype in (torch.float16, torch.float32):
        paged_attention.paged_attention(*(x.to(dtype) if x.is_floating_point() else x for x in made), 0.25)
    assert launched == [torch.float16]
