"""Supervised fine-tuning: the next token of the trained turns.

Comes in: a batch whose labels have weights (``data/weigh.py`` gave the assistant's tokens theirs). Goes out: ``Loss``,
the sum of ``weight · -log p(label)`` over trained tokens: the eighth arrow of the walk. Dividing it by the weights of
the whole step is the loop's, so no grouping of the data can change the result.
T: tokens. N: rows with a label. H: hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from whippet.data.batches import Batch
from whippet.kernels.linear_cross_entropy import linear_cross_entropy
from whippet.kernels.take_rows import take_rows
from whippet.model.decoder import Decoder


@dataclass(frozen=True)
class Loss:
    """Of one batch; tensors are scalars on the model's device."""

    loss_sum: Tensor
    """fp32, with gradient: the sum of weight · nll."""
    correct: Tensor
    """int64: trained tokens that the model ranks first."""
    num_trained: int
    """Tokens with a label."""


Objective = Callable[[Decoder, Batch, int], Loss]
"""What ``loss`` below is: (decoder, batch, rows of the output matrix's product that exist at once) to its loss."""


def loss(decoder: Decoder, batch: Batch, chunk_rows: int) -> Loss:
    """The loss of ``batch``, which lies on the CPU: rows with a label are found there, so that no GPU is waited for. A
    batch that has its rows may lie on the decoder's device."""
    whole = batch.with_rows()
    on_device = whole.to(decoder.device)
    hidden_TH = decoder(on_device.ids, on_device.positions, on_device.cu_seqlens, batch.max_length)
    labels_N, weights_N, rows_N = on_device.labels, on_device.weights, on_device.rows
    assert rows_N is not None
    if len(rows_N) < batch.num_tokens:
        hidden_TH, labels_N, weights_N = take_rows(hidden_TH, rows_N), labels_N[rows_N], weights_N[rows_N]
    softcap = decoder.config.logit_softcap
    result = linear_cross_entropy(hidden_TH, decoder.head_weight, labels_N, weights_N, chunk_rows, softcap)
    return Loss(result.loss_sum, result.correct, len(rows_N))
