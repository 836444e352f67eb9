"""What stays for a draw, against plain loops; whole weights that do not depend on rows beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels.truncate_cases import SETTINGS, columns, kept, make

from whippet.kernels import triton_jit
from whippet.kernels.truncate import BLOCK, SCALE, _truncate_kernel, truncate, truncate_reference, whole

needs_triton = pytest.mark.skipif(triton_jit.triton is None, reason="triton is not installed")


@pytest.mark.parametrize("vocab", [1, 63, 431])
def test_what_stays_is_what_the_definitions_say(vocab: int) -> None:
    logits_BV, probs_BV = make(len(SETTINGS), max(vocab, 3))
    logits_BV, probs_BV = logits_BV[:, -vocab:].contiguous(), probs_BV[:, -vocab:].contiguous()
    weights_BV = truncate(logits_BV, probs_BV, *columns(SETTINGS))
    for row, setting in enumerate(SETTINGS):
        expected = kept(logits_BV[row], probs_BV[row], *setting)
        found = {int(token): int(weights_BV[row, token]) for token in weights_BV[row].nonzero()}
        assert found == {token: weight for token, weight in expected.items() if weight}, setting
    assert torch.equal(weights_BV[0], whole(probs_BV)[0])


def test_of_equal_tokens_the_smaller_id_stays() -> None:
    logits_BV = torch.zeros(3, 4)
    weights_BV = truncate(logits_BV, logits_BV.softmax(-1), *columns([(1, 1.0, 0.0), (0, 0.5, 0.0), (0, 0.51, 0.0)]))
    assert weights_BV.ne(0).tolist() == [[True, False, False, False], [True, True, False, False], [True] * 3 + [False]]


def test_top_p_1_drops_nothing_however_small() -> None:
    logits_BV = torch.tensor([[0.0, -39.0], [0.0, -39.0]])
    weights_BV = truncate(logits_BV, logits_BV.softmax(-1), *columns([(2, 1.0, 0.0), (2, 0.999999, 0.0)]))
    assert weights_BV.ne(0).tolist() == [[True, True], [True, False]]


def test_whole_weights_are_exact() -> None:
    probs = torch.tensor([1.0, 0.1, 2.0**-60, 2.0**-61, 0.0])
    assert whole(probs).tolist() == [2**60, int(float(probs[1]) * 2**60), 1, 0, 0]


@needs_triton
def test_the_kernel_under_the_interpreter() -> None:
    cases = Path(__file__).with_name("interpreted_truncate.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("card", ["T4", "H100"])
def test_the_kernel_compiles(card: str) -> None:
    from kernels.test_compile import compile_for

    pointers = {"logits_ptr": "*fp32", "probs_ptr": "*fp32", "top_k_ptr": "*i64", "top_p_ptr": "*fp32"}
    more = {"min_p_ptr": "*fp32", "weights_ptr": "*i64", "vocab": "i32", "SCALE": SCALE, "BLOCK": BLOCK}
    compile_for(_truncate_kernel, pointers | more, card)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("vocab", [1, 431, 128256])
def test_the_kernel_on_a_gpu_gives_the_reference_to_the_bit(vocab: int) -> None:
    rows = SETTINGS * 3
    logits_BV, probs_BV = (x_BV[:, -vocab:].contiguous().cuda() for x_BV in make(len(rows), max(vocab, 3)))
    settings = tuple(column.cuda() for column in columns(rows))
    assert torch.equal(truncate(logits_BV, probs_BV, *settings), truncate_reference(logits_BV, probs_BV, *settings))
