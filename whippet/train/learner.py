"""One optimiser step: loss and gradient of each micro-batch, clip, move; whatever the memory or the numbers do.

Comes in: a ``Step`` of data. Goes out: ``Learnt``. If memory runs out, the whole step is done again in smaller
micro-batches, which is remembered; it is the same global batch in the same order, so the result is the same. If a loss
or gradient is not finite, nothing moves and the place is named.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from whippet.data.batches import Batch, Step
from whippet.errors import WhippetError
from whippet.model.decoder import Decoder
from whippet.options import TrainOptions
from whippet.train.micro import micro_batches
from whippet.train.nonfinite import bad_gradient, bad_output
from whippet.train.objectives.sft import Loss
from whippet.train.optim import Parameters, gradient_norm, scale_gradients

Objective = Callable[[Decoder, Batch, int], Loss]
LEAST_CHUNK_ROWS = 64


@dataclass(frozen=True)
class Limits:
    """How much is held in memory at once; the result does not depend on it."""

    micro_tokens: int
    """Tokens of a micro-batch; a longer single document goes through alone."""
    recompute: int
    """Leading layers whose activations are computed again in the backward pass."""
    chunk_rows: int
    """Rows of the output matrix's product that exist at once."""
    park: int = 0
    """Leading layers, of those that are computed again, whose inputs wait in the host's memory."""

    def as_dict(self) -> dict[str, int]:
        """For JSON; ``Limits(**d)`` makes it again."""
        return asdict(self)


@dataclass(frozen=True)
class Learnt:
    """What a step gave. ``loss`` is the mean over trained tokens, by weight."""

    loss: float
    accuracy: float
    grad_norm: float
    num_trained: int
    bad_place: str | None = None
    """What was not finite; then nothing has moved."""
    bad_batch: Batch | None = None
    """The micro-batch in which that was seen, if it was seen in one."""


@contextmanager
def quiet_collector() -> Iterator[None]:
    """What was made before lives as long as this does: Python's collector need not look at it again, which would hold
    up a step for tens of milliseconds now and then."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Learner:
    """Holds what steps share: the decoder, its optimiser, and the limits as they have become."""

    def __init__(
        self,
        decoder: Decoder,
        parameters: Parameters,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        options: TrainOptions,
        limits: Limits,
        tell: Callable[[str], None],
    ) -> None:
        self.decoder, self.parameters, self.optimizer, self.objective = decoder, parameters, optimizer, objective
        self.options, self.limits, self.tell = options, limits, tell

    def learn(self, step: Step, rate: float, seed: int) -> Learnt:
        """Do one step at the learning rate ``rate``; ``seed`` decides what dropout draws."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            self.decoder.train()
            self.decoder.recompute, self.decoder.park = self.limits.recompute, self.limits.park
            torch.manual_seed(seed)
            learnt = self._attempt(step, rate)
            if isinstance(learnt, Learnt):
                return learnt
            # Out of the except block, whose traceback would hold the tensors of the failed attempt.
            self._make_smaller(learnt)

    def _attempt(self, step: Step, rate: float) -> Learnt | Batch:
        """The step's outcome, or the micro-batch for which memory did not suffice."""
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        num_trained = 0
        for batch in micro_batches(step.batches, self.limits.micro_tokens):
            try:
                loss = self.objective(self.decoder, batch, self.limits.chunk_rows)
                loss.loss_sum.backward()
            except torch.OutOfMemoryError:
                return batch
            losses.append(loss.loss_sum.detach())
            hits.append(loss.correct)
            num_trained += loss.num_trained
        return self._move(step, rate, losses, hits, num_trained)

    def _move(self, step: Step, rate: float, losses: list[Tensor], hits: list[Tensor], num_trained: int) -> Learnt:
        # A parameter that no batch reached has no gradient.
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = gradient_norm(gradients, step.weight_sum)
        losses_M = torch.stack(losses)
        mean = float(losses_M.double().sum()) / step.weight_sum
        learnt = Learnt(mean, int(torch.stack(hits).sum()) / num_trained, float(norm), num_trained)
        if not bool(torch.isfinite(losses_M).all()):
            batch = self._batch(step, int(torch.isfinite(losses_M).logical_not().nonzero()[0]))
            return replace(learnt, bad_place=bad_output(self.decoder, batch), bad_batch=batch)
        if not bool(torch.isfinite(norm)):
            return replace(learnt, bad_place=bad_gradient(self.parameters) or "norm of the gradients")
        scale_gradients(gradients, norm, step.weight_sum, self.options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return learnt

    def _batch(self, step: Step, index: int) -> Batch:
        return list(micro_batches(step.batches, self.limits.micro_tokens))[index]

    def _make_smaller(self, batch: Batch) -> None:
        """Halve the micro-batches below the size that failed; if that is one document, recompute everything."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before, layers = self.limits, self.decoder.config.num_layers
        most = layers if self.decoder.device.type == "cuda" else 0
        if batch.num_examples > 1:
            self.limits = replace(before, micro_tokens=max(1, batch.num_tokens // 2))
        elif before.recompute < layers or before.park < most or before.chunk_rows > LEAST_CHUNK_ROWS:
            rows = min(before.chunk_rows, LEAST_CHUNK_ROWS)
            self.limits = replace(before, recompute=layers, park=most, chunk_rows=rows)
        else:
            raise WhippetError(
                f"out of memory: one document of {batch.num_tokens:,} tokens does not fit on {self.decoder.device}, "
                f"though all {layers} layers are recomputed. Lower data.max_length below {batch.num_tokens:,}, or "
                'use model.base = "nf4" or a smaller lora.r'
            )
        now = self.limits
        self.tell(
            f"out of memory in a micro-batch of {batch.num_tokens:,} tokens; the step is done again with "
            f"{now.micro_tokens:,} tokens at once and {now.recompute} of {layers} layers recomputed"
        )
