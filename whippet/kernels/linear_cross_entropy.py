"""Cross-entropy of the output matrix's logits, without the logits.

    logits = h · Wᵀ        nll_i = log sum_v exp(logits_iv) - logits_i,label        loss = sum of weight_i · nll_i

The rows go through the output matrix in chunks. Each chunk yields its loss and, in the same pass, the gradient

    dlogits = weight · (softmax(logits) - onehot(label))        dh = dlogits · W        dW += dlogitsᵀ · h

so that [chunk, V] is the largest thing that ever exists. Softmax, loss and dW are in fp32. The backward pass only
scales by the incoming gradient.

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

from whippet.kernels.frozen_linear import dense
from whippet.kernels.nf4 import NF4Tensor


@dataclass(frozen=True)
class CrossEntropy:
    loss_sum: Tensor
    """fp32 scalar: sum of weight · nll, with gradient."""
    correct: Tensor
    """int64 scalar: rows whose largest logit is their label (on the device: reading it waits for the GPU)."""
    logprobs_N: Tensor
    """fp32 [N]: log-probability of each label, without gradient."""


def linear_cross_entropy(
    hidden_NH: Tensor, head_weight_VH: Tensor | NF4Tensor, labels_N: Tensor, weights_N: Tensor, chunk_rows: int
) -> CrossEntropy:
    """Weighted cross-entropy of ``labels_N`` (each in [0, V)) under the logits ``hidden_NH · head_weight_VHᵀ``.

    ``chunk_rows``: rows whose logits exist at once. Memory: about 6 bytes · chunk_rows · V for 16-bit rows.
    """
    assert chunk_rows > 0, chunk_rows
    weight = None if isinstance(head_weight_VH, NF4Tensor) else head_weight_VH
    frozen = head_weight_VH if isinstance(head_weight_VH, NF4Tensor) else None
    loss, correct, logprobs_N = _LinearCrossEntropy.apply(
        hidden_NH, weight, frozen, labels_N, weights_N.float(), chunk_rows
    )
    return CrossEntropy(loss, correct, logprobs_N)


def linear_cross_entropy_reference(
    hidden_NH: Tensor, head_weight_VH: Tensor | NF4Tensor, labels_N: Tensor, weights_N: Tensor
) -> CrossEntropy:
    """The definition with full logits, differentiated by autograd."""
    logits_NV = (hidden_NH @ dense(head_weight_VH, hidden_NH.dtype).T).float()
    logprobs_N = logits_NV.log_softmax(-1).gather(1, labels_N.view(-1, 1)).view(-1)
    correct = (logits_NV.argmax(-1) == labels_N).sum()
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
            correct += (logits_CV.argmax(-1) == labels_N[rows]).sum()
            logprobs_N[rows] = _logprobs(logits_CV, labels_N[rows])
            if not (wants_hidden or wants_weight):
                continue
            dlogits_CV = _logits_gradient(logits_CV, labels_N[rows], weights_N[rows]).to(hidden_NH.dtype)
            if dhidden_NH is not None:
                torch.mm(dlogits_CV, head_VH, out=dhidden_NH[rows])
            if dweight_VH is not None:
                dweight_VH += dlogits_CV.T @ hidden_NH[rows]
        ctx.save_for_backward(*(grad for grad in (dhidden_NH, dweight_VH) if grad is not None))
        ctx.weight_dtype = head_VH.dtype if weight_VH is None else weight_VH.dtype
        ctx.mark_non_differentiable(correct, logprobs_N)
        return -(weights_N * logprobs_N).sum(), correct, logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        dhidden_NH = next(saved) * grad if ctx.needs_input_grad[0] else None
        dweight_VH = (next(saved) * grad).to(ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        return dhidden_NH, dweight_VH, None, None, None, None


def _logits(hidden_CH: Tensor, head_VH: Tensor) -> Tensor:
    """fp32 logits; on a GPU the product's own fp32 sums, before any rounding to 16 bit."""
    if hidden_CH.is_cuda and hidden_CH.dtype != torch.float32:
        return torch.mm(hidden_CH, head_VH.T, out_dtype=torch.float32)
    return (hidden_CH @ head_VH.T).float()


def _logprobs(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    """Log-probability of each label; turns the logits into log-probabilities in place."""
    logits_CV -= logits_CV.logsumexp(-1, keepdim=True)
    return logits_CV.gather(1, labels_C.view(-1, 1)).view(-1)


def _logits_gradient(logprobs_CV: Tensor, labels_C: Tensor, weights_C: Tensor) -> Tensor:
    """weight · (softmax - onehot), in place of the log-probabilities."""
    probs_CV = logprobs_CV.exp_()
    labels_C1 = labels_C.view(-1, 1)
    probs_CV.scatter_(1, labels_C1, probs_CV.gather(1, labels_C1) - 1)
    return probs_CV.mul_(weights_C.view(-1, 1))
