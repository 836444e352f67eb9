"""What an op promises beside its values: isolation of documents, nothing large kept, nothing formed that is not asked
for, counts and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from tolerance import assert_accurate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from whippet.kernels import attention as attention_module
from whippet.kernels import frozen_linear as frozen_linear_module
from whippet.kernels.attention import cached_attention, naive_attention, packed_attention
from whippet.kernels.frozen_linear import frozen_linear
from whippet.kernels.gated_linear import gated_linear
from whippet.kernels.gated_mlp import gated
from whippet.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from whippet.kernels.lora_factors import LoraPart, Stacked
from whippet.kernels.nf4 import dequantize_nf4, quantize_nf4
from whippet.kernels.rms_norm import add_rms_norm, rms_norm


def normal(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def kept_by(function: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that autograd keeps while ``function`` runs."""
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        function()
    return kept


class Largest(TorchDispatchMode):
    """Records the most elements that any result of an operation had, and counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket is torch.ops.aten.mm
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_a_document_never_sees_another() -> None:
    borders = torch.tensor([0, 9, 17, 40], dtype=torch.int32)
    q, k, v = normal(40, 4, 16), normal(40, 2, 16, seed=1), normal(40, 2, 16, seed=2)
    before = packed_attention(q, k, v, borders, 23, 0.25)
    for x in (q, k, v):
        x[9:17] += 100
    after = packed_attention(q, k, v, borders, 23, 0.25)
    assert torch.equal(before[:9], after[:9]) and torch.equal(before[17:], after[17:])
    assert not torch.equal(before[9:17], after[9:17])


def test_attention_to_one_token_is_its_value() -> None:
    v = normal(1, 2, 16, seed=2)
    out = packed_attention(normal(1, 4, 16), normal(1, 2, 16), v, torch.tensor([0, 1], dtype=torch.int32), 1, 0.25)
    assert torch.equal(out, v.repeat_interleave(2, dim=1))


@pytest.mark.parametrize(("window", "softcap"), [(0, None), (4, None), (0, 0.7), (4, 0.7)])
def test_cached_attention_equals_the_packed_form(
    window: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "BLOCK", 2)  # of queries at once, where there is a cap
    lengths, new, slots = [5, 12, 3], 3, 14
    q, k, v = normal(3, new, 4, 16), normal(3, slots, 2, 16, seed=1), normal(3, slots, 2, 16, seed=2)
    out = cached_attention(q, k, v, torch.tensor(lengths), 0.25, window, softcap)
    for row, length in enumerate(lengths):
        padded = torch.cat([normal(length - new, 4, 16, seed=3), q[row]])
        borders = torch.tensor([0, length])
        inputs = [padded, k[row, :length], v[row, :length]]
        plain = naive_attention(*inputs, borders, 0.25, window, softcap)[-new:]
        exact = naive_attention(*(x.double() for x in inputs), borders, 0.25, window, softcap)[-new:]
        assert_accurate(out[row], plain, exact)


def test_frozen_linear_keeps_no_weight_and_gives_it_no_gradient() -> None:
    weight = normal(256, 128)
    x = normal(10, 128, seed=1, grad=True)
    part = LoraPart(normal(4, 128, seed=2, grad=True), normal(256, 4, seed=3, grad=True), slice(0, 256), 1.0)
    for held in (quantize_nf4(weight), weight.bfloat16()):
        kept = kept_by(lambda held=held: frozen_linear(x, held, None, [part]))
        assert all(tensor.numel() < weight.numel() for tensor in kept)
    plain = normal(256, 128).requires_grad_(True)
    frozen_linear(x, plain, None, [part]).sum().backward()
    assert plain.grad is None and x.grad is not None


def test_frozen_linear_without_factors_keeps_nothing() -> None:
    x = normal(10, 128, grad=True)
    assert kept_by(lambda: frozen_linear(x, normal(256, 128))) == []


def test_only_the_inputs_of_norms_and_gates_are_kept() -> None:
    x, residual, weight = normal(7, 64, grad=True), normal(7, 64, seed=1, grad=True), normal(64, seed=2)
    for function in (lambda: rms_norm(x, weight, 1e-5), lambda: add_rms_norm(x, residual, weight, 1e-5)[0]):
        assert sum(tensor.numel() for tensor in kept_by(function)) == 7 * 64 + 64 + 7
    assert [tensor.data_ptr() for tensor in kept_by(lambda: gated(x))] == [x.data_ptr()]


def test_full_logits_never_exist() -> None:
    hidden, head = normal(50, 8, grad=True), normal(400, 8, seed=1, grad=True)
    labels, weights = torch.arange(50), torch.ones(50)
    with Largest() as largest:
        linear_cross_entropy(hidden, head, labels, weights, 10).loss_sum.backward()
    assert largest.numel == max(10 * 400, 400 * 8)


def test_a_frozen_or_quantised_head_gets_no_gradient() -> None:
    hidden, head = normal(50, 64, grad=True), normal(128, 64, seed=1)
    labels, weights = torch.arange(50), torch.rand(50)
    nf4 = quantize_nf4(head)
    grads = []
    for held in (nf4, dequantize_nf4(nf4, torch.float32)):
        hidden.grad = None
        linear_cross_entropy(hidden, held, labels, weights, 16).loss_sum.backward()
        grads.append(hidden.grad)
    assert torch.equal(grads[0], grads[1])


def test_correct_and_logprobs() -> None:
    hidden, head = normal(50, 16), normal(30, 16, seed=1)
    logits = hidden @ head.T
    labels = torch.where(torch.arange(50) % 3 == 0, logits.argmax(-1), torch.arange(50) % 30)
    ours = linear_cross_entropy(hidden, head, labels, torch.ones(50), 7)
    plain = linear_cross_entropy_reference(hidden, head, labels, torch.ones(50))
    exact = linear_cross_entropy_reference(hidden.double(), head.double(), labels, torch.ones(50))
    assert int(ours.correct) == int((logits.argmax(-1) == labels).sum()) >= 17
    assert_accurate(ours.logprobs_N, plain.logprobs_N, exact.logprobs_N)
    assert not ours.logprobs_N.requires_grad


def test_the_chunk_size_changes_no_row() -> None:
    hidden, head, labels = normal(50, 16), normal(30, 16, seed=1), torch.arange(50) % 30
    whole, rows = (linear_cross_entropy(hidden, head, labels, torch.ones(50), size) for size in (50, 7))
    assert_accurate(rows.logprobs_N, whole.logprobs_N, whole.logprobs_N.double())


def test_without_grad_no_gradient_is_formed() -> None:
    hidden, head = normal(50, 8, grad=True), normal(400, 8, seed=1, grad=True)
    with torch.no_grad(), Largest() as without:
        linear_cross_entropy(hidden, head, torch.arange(50), torch.ones(50), 2)
    with Largest() as with_grad:
        linear_cross_entropy(hidden, head, torch.arange(50), torch.ones(50), 2)
    assert (without.products, with_grad.products) == (25, 75)


def test_no_supervised_rows_give_zero_and_a_zero_gradient() -> None:
    hidden, head = normal(0, 16, grad=True), normal(30, 16, seed=1, grad=True)
    result = linear_cross_entropy(hidden, head, torch.empty(0, dtype=torch.int64), torch.empty(0), 8)
    result.loss_sum.backward()
    assert float(result.loss_sum.detach()) == 0 and int(result.correct) == 0
    assert head.grad is not None and not head.grad.any()


def test_the_gradient_can_be_taken_twice() -> None:
    hidden, head = normal(20, 16, grad=True), normal(30, 16, seed=1)
    loss = linear_cross_entropy(hidden, head, torch.arange(20), torch.ones(20), 8).loss_sum * 0.25
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_halves_of_the_outputs_are_given_what_adds_to_them() -> None:
    """Also where a part lies in both, or a half has none."""
    for borders in ([0, 2, 3, 5, 8], [0, 2, 4, 8], [0, 8], [5, 8]):
        rows = [slice(*pair) for pair in pairwise(borders)]
        parts = [
            LoraPart(torch.randn(rank, 6), torch.randn(place.stop - place.start, rank), place, 1.0)
            for rank, place in enumerate(rows, start=2)
        ]
        stacked = Stacked(parts, 8, torch.float32).renewed(parts)
        u_TR = torch.randn(3, sum(len(part.a_rK) for part in parts))
        halves = frozen_linear_module._by_halves(u_TR, stacked, [(part.rows, part.scale) for part in parts])
        added_TN = torch.cat([u @ b.T for u, b in halves], 1)
        torch.testing.assert_close(added_TN, u_TR @ stacked.b_NR.T)
    assert [u.shape[1] for u, _ in halves] == [0, 2]


def test_a_gated_linear_goes_back_once() -> None:
    """Its backward pass writes over what it saved, so that a second one must not run in silence."""
    factors = [torch.randn(2, 6, requires_grad=True), torch.randn(5, 2, requires_grad=True)]
    parts = [LoraPart(factors[0], factors[1], slice(0, 5), 1.0)]
    gate_up = torch.randn(3, 12, requires_grad=True)
    stacked = Stacked(parts, 5, torch.float32).renewed(parts)
    y = gated_linear(gate_up.clone(), torch.randn(5, 6), None, parts, stacked)
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
