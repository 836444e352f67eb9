"""``kernels/paged_attention.py`` under Triton's interpreter; started by ``test_triton.py``."""

from __future__ import annotations

import pytest
import torch
from kernels.paged_cases import LENGTHS, check_alone, check_paged

from whippet.kernels import triton_jit


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_jit, "usable", lambda x: True)


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
