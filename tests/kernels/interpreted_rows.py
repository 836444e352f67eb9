"""``dense_rows`` under Triton's interpreter; started by ``test_triton.py``."""

from __future__ import annotations

import pytest
import torch
from kernels import dense_rows_cases as cases

from whippet.kernels import dense_rows, triton_jit


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_jit, "usable", lambda x: True)


@pytest.mark.parametrize("shape", [(1, 48, 64), (3, 20, 832), (17, 130, 576)], ids=str)
def test_rows(shape: tuple[int, int, int]) -> None:
    cases.check_rows(*shape, torch.float16, "cpu")


def test_wide_matrices_go_in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_rows, "WIDE", 100)
    monkeypatch.setattr(dense_rows, "PROGRAMS", 1)
    cases.check_rows(2, 130, 576, torch.float16, "cpu")


def test_a_row_alone() -> None:
    # More rows make a wider tile, whose product the interpreter has numpy sum in another order.
    cases.check_alone(16, 20, 832, torch.float16, "cpu")
