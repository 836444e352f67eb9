"""Cross-entropy of the output matrix's logits, without the logits.

    logits = h · Wᵀ        nll_i = log sum_v exp(logits_iv) - logits_i,label        loss = sum of weight_i · nll_i

The rows go through the output matrix in chunks. Each chunk yields its loss and, in the same pass, the gradient

    dlogits = weight · (softmax(logits) - onehot(label))        dh = dlogits · W        dW += dlogitsᵀ · h

so that [chunk, V] is the largest thing that ever exists. Softmax, loss and dW are in fp32. The backward pass only
scales by the incoming gradient. With a soft cap c (``softcap.py``) logits become c · tanh(logits / c), and dlogits have
its slope as a factor.

In: hidden rows [N, H] (those with a label only), W [V, H] as a tensor, frozen or trained, or NF4Tensor; labels [N];
weights fp32 [N]. Out: CrossEntropy.

Shapes: N rows, H hidden size, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whippet.kernels import triton_jit
from whippet.kernels.frozen_linear import dense
from whippet.kernels.nf4 import NF4Tensor
from whippet.kernels.softcap import capped_, slope, tanh
from whippet.kernels.triton_jit import tl

BLOCK = 4096
"""Columns of logits that a program of the GPU holds at once."""


@dataclass(frozen=True)
class CrossEntropy:
    loss_sum: Tensor
    """fp32 scalar: sum of weight · nll, with gradient."""
    correct: Tensor
    """int64 scalar: rows with weight whose largest logit is their label (on the device: reading it waits for the
    GPU)."""
    logprobs_N: Tensor
    """fp32 [N]: log-probability of each label, without gradient."""


def linear_cross_entropy(
    hidden_NH: Tensor,
    head_weight_VH: Tensor | NF4Tensor,
    labels_N: Tensor,
    weights_N: Tensor,
    chunk_rows: int,
    softcap: float | None = None,
) -> CrossEntropy:
    """Weighted cross-entropy of ``labels_N`` (each in [0, V)) under the logits ``hidden_NH · head_weight_VHᵀ``, capped
    if there is a ``softcap``.

    ``chunk_rows``: rows whose logits exist at once. Memory: about 6 bytes · chunk_rows · V for 16-bit rows.
    """
    assert chunk_rows > 0, chunk_rows
    weight = None if isinstance(head_weight_VH, NF4Tensor) else head_weight_VH
    frozen = head_weight_VH if isinstance(head_weight_VH, NF4Tensor) else None
    if not torch.is_grad_enabled():  # gradients are formed in the forward pass, so that it must know
        hidden_NH, weight = hidden_NH.detach(), None if weight is None else weight.detach()
    loss, correct, logprobs_N = _LinearCrossEntropy.apply(
        hidden_NH, weight, frozen, labels_N, weights_N.float(), chunk_rows, softcap
    )
    return CrossEntropy(loss, correct, logprobs_N)


def linear_cross_entropy_reference(
    hidden_NH: Tensor,
    head_weight_VH: Tensor | NF4Tensor,
    labels_N: Tensor,
    weights_N: Tensor,
    softcap: float | None = None,
) -> CrossEntropy:
    """The definition with full logits, differentiated by autograd."""
    logits_NV = (hidden_NH @ dense(head_weight_VH, hidden_NH.dtype).T).float()
    logits_NV = logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
    logprobs_N = logits_NV.log_softmax(-1).gather(1, labels_N.view(-1, 1)).view(-1)
    correct = ((logits_NV.argmax(-1) == labels_N) & (weights_N != 0)).sum()
    return CrossEntropy(-(weights_N.float() * logprobs_N).sum(), correct, logprobs_N.detach())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor | None,
        frozen_VH: NF4Tensor | None,
        labels_N: Tensor,
        weights_N: Tensor,
        chunk_rows: int,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        source = frozen_VH if weight_VH is None else weight_VH
        assert source is not None
        head_VH = dense(source, hidden_NH.dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        dhidden_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        dweight_VH = torch.zeros_like(head_VH, dtype=torch.float32) if wants_weight else None
        logprobs_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        correct = labels_N.new_zeros((), dtype=torch.int64)
        for start in range(0, len(hidden_NH), chunk_rows):
            rows = slice(start, start + chunk_rows)
            logits_CV = _logits(hidden_NH[rows], head_VH)
            run = rows_triton if triton_jit.usable(logits_CV) else rows_torch
            gradient_dtype = hidden_NH.dtype if wants_hidden or wants_weight else None
            logprobs_N[rows], hits_C, dlogits_CV = run(
                logits_CV, labels_N[rows], weights_N[rows], gradient_dtype, softcap
            )
            del logits_CV  # else it would still be there while the next chunk's are formed
            correct += (hits_C.bool() & (weights_N[rows] != 0)).sum()
            if dhidden_NH is not None and dlogits_CV is not None:
                torch.mm(dlogits_CV, head_VH, out=dhidden_NH[rows])
            if dweight_VH is not None and dlogits_CV is not None:
                dweight_VH += dlogits_CV.T @ hidden_NH[rows]
            del dlogits_CV
        ctx.save_for_backward(*(grad for grad in (dhidden_NH, dweight_VH) if grad is not None))
        ctx.weight_dtype = head_VH.dtype if weight_VH is None else weight_VH.dtype
        ctx.mark_non_differentiable(correct, logprobs_N)
        # A row without weight counts for nothing, even if its logits are not finite.
        counted_N = torch.where(weights_N != 0, weights_N * logprobs_N, 0.0)
        return -counted_N.sum(), correct, logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        dhidden_NH = next(saved) * grad if ctx.needs_input_grad[0] else None
        dweight_VH = (next(saved) * grad).to(ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        return dhidden_NH, dweight_VH, None, None, None, None, None


def _logits(hidden_CH: Tensor, head_VH: Tensor) -> Tensor:
    """fp32 logits; on a GPU the product's own fp32 sums, before any rounding to 16 bit."""
    if hidden_CH.is_cuda and hidden_CH.dtype != torch.float32:
        return torch.mm(hidden_CH, head_VH.T, out_dtype=torch.float32)
    return (hidden_CH @ head_VH.T).float()


def rows_torch(
    logits_CV: Tensor,
    labels_C: Tensor,
    weights_C: Tensor,
    gradient_dtype: torch.dtype | None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability of each label, whether it has the largest logit, and dlogits in ``gradient_dtype`` if wanted.

    The logits are overwritten.
    """
    labels_C1 = labels_C.view(-1, 1)
    capped_(logits_CV, softcap)
    slope_CV = None if softcap is None or gradient_dtype is None else slope(logits_CV, softcap)
    hits_C = logits_CV.argmax(-1) == labels_C
    logits_CV -= logits_CV.logsumexp(-1, keepdim=True)
    logprobs_C1 = logits_CV.gather(1, labels_C1)
    if gradient_dtype is None:
        return logprobs_C1.view(-1), hits_C, None
    probs_CV = logits_CV.exp_()
    probs_CV.scatter_(1, labels_C1, probs_CV.gather(1, labels_C1) - 1)
    if slope_CV is not None:
        probs_CV *= slope_CV
    weights_C1 = weights_C.view(-1, 1)
    return logprobs_C1.view(-1), hits_C, probs_CV.mul_(weights_C1).masked_fill_(weights_C1 == 0, 0.0).to(gradient_dtype)


@triton_jit.jit
def _rows_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    labels_ptr,
    weights_ptr,
    logprobs_ptr,
    hits_ptr,
    dlogits_ptr,
    num_columns,
    softcap,
    GRADIENT: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * num_columns
    label = tl.load(labels_ptr + row)
    largest = -float("inf")
    total = 0.0
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = tl.load(row_ptr + columns, mask=columns < num_columns, other=-float("inf"))
        if CAPPED:
            logits = tl.where(columns < num_columns, softcap * tanh(logits / softcap), -float("inf"))
        before = largest
        largest = tl.maximum(before, tl.max(logits, axis=0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(logits - largest), axis=0)
    # A label outside the vocabulary shows as NaN.
    wanted = tl.load(row_ptr + label, mask=(label >= 0) & (label < num_columns), other=float("nan"))
    if CAPPED:
        wanted = softcap * tanh(wanted / softcap)
    # The largest is taken off first: a sum of it and the logarithm would lose the last bits of both.
    tl.store(logprobs_ptr + row, (wanted - largest) - tl.log(total))
    tl.store(hits_ptr + row, (wanted >= largest).to(tl.int8))
    if GRADIENT:
        weight = tl.load(weights_ptr + row)
        share = 1.0 / total
        for start in range(0, num_columns, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < num_columns
            logits = tl.load(row_ptr + columns, mask=inside, other=-float("inf"))
            if CAPPED:
                share_of_cap = tanh(logits / softcap)
                logits = softcap * share_of_cap
            gradient = (tl.exp(logits - largest) * share - (columns == label).to(tl.float32)) * weight
            if CAPPED:
                gradient *= 1 - share_of_cap * share_of_cap
            gradient = tl.where(weight == 0, 0.0, gradient)
            out_ptr = dlogits_ptr + row * num_columns + columns
            tl.store(out_ptr, gradient.to(dlogits_ptr.dtype.element_ty), mask=inside)


def rows_triton(
    logits_CV: Tensor,
    labels_C: Tensor,
    weights_C: Tensor,
    gradient_dtype: torch.dtype | None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``rows_torch``, reading the logits twice and writing dlogits once. Of equal largest logits each is a hit."""
    num_rows, num_columns = logits_CV.shape
    logprobs_C = torch.empty(num_rows, dtype=torch.float32, device=logits_CV.device)
    hits_C = torch.empty(num_rows, dtype=torch.int8, device=logits_CV.device)
    dlogits_CV = None if gradient_dtype is None else torch.empty_like(logits_CV, dtype=gradient_dtype)
    _rows_kernel[(num_rows,)](
        logits_CV,
        labels_C.contiguous(),
        weights_C.contiguous(),
        logprobs_C,
        hits_C,
        logprobs_C if dlogits_CV is None else dlogits_CV,
        num_columns,
        1.0 if softcap is None else softcap,
        GRADIENT=dlogits_CV is not None,
        CAPPED=softcap is not None,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return logprobs_C, hits_C, dlogits_CV
