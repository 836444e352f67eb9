"""One optimiser step: loss and gradient of each micro-batch, clip, move; whatever the memory or the numbers do.

Comes in: a ``Step`` of data. Goes out: ``Learnt``. If memory runs out, the whole step is done again in smaller
micro-batches, which is remembered; it is the same global batch in the same order, so the result is the same. If a loss
or gradient is not finite, nothing moves and the place is named.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whippet.data.batches import Batch, Step
from whippet.errors import WhippetError
from whippet.model.decoder import Decoder
from whippet.options import TrainOptions
from whippet.train.choose import host_room
from whippet.train.limits import LEAST_CHUNK_ROWS, LEAST_TILE, Limits
from whippet.train.micro import micro_batches
from whippet.train.nonfinite import bad_gradient, bad_output
from whippet.train.objectives.sft import Objective
from whippet.train.optim import Parameters, gradient_norm, scale_gradients, step_if
from whippet.train.replay import Replays, recorder

SPARE = 0.2
"""Share of a device's memory that other work (evaluation, samples) should find free."""


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
        budget: int | None = None,
    ) -> None:
        """``budget``: bytes of the device that training may take, where that is less than is free."""
        self.decoder, self.parameters, self.optimizer, self.objective = decoder, parameters, optimizer, objective
        self.options, self.limits, self.tell = options, limits, tell
        draws = any(
            adapter.dropout > 0 for _, projection in decoder.projections() for _, adapter in projection.adapter_items()
        )
        self.replays = Replays(decoder, list(parameters.values()), recorder(decoder, draws=draws, budget=budget), tell)

    def learn(self, step: Step, rate: float, seed: int) -> Learnt:
        """Do one step at the learning rate ``rate``; ``seed`` decides what dropout draws."""
        self._excused = False
        while True:
            self.replays.begin()
            if not self.decoder.training:
                self.decoder.train()
            self.decoder.recompute, self.decoder.park = self.limits.recompute, self.limits.park
            self.decoder.halves, self.decoder.tile = self.limits.halves, self.limits.tile
            self.decoder.entire = self.limits.entire
            torch.manual_seed(seed)
            learnt = self._attempt(step, rate)
            if isinstance(learnt, Learnt):
                return learnt
            # Out of the except block, whose traceback would hold the tensors of the failed attempt.
            self._make_smaller(learnt)

    def rest(self) -> None:
        """Before other work on the device: let go of recorded work where it would leave that too little memory."""
        if self.replays.hold_memory:
            free, total = torch.cuda.mem_get_info(self.decoder.device)
            if free < SPARE * total:
                self._give_back()

    def _attempt(self, step: Step, rate: float) -> Learnt | Batch:
        """The step's outcome, or the micro-batch for which memory did not suffice."""
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        num_trained = 0
        for batch in micro_batches(step.batches, self.limits.micro_tokens):
            try:
                loss = self.replays.learn(self.objective, batch, self.limits.chunk_rows, self.limits.micro_tokens)
            except torch.OutOfMemoryError:
                return batch
            losses.append(loss.loss_sum.detach())
            hits.append(loss.correct)
            num_trained += loss.num_trained
        return self._move(step, rate, losses, hits, num_trained)

    def _move(self, step: Step, rate: float, losses: list[Tensor], hits: list[Tensor], num_trained: int) -> Learnt:
        """Move, if everything is finite. Nothing waits for a GPU before all of its work has been launched."""
        # A parameter that no batch reached has no gradient.
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = gradient_norm(gradients, step.weight_sum)
        losses_M = torch.stack(losses)
        is_fine = torch.isfinite(losses_M).all() & torch.isfinite(norm)
        scale_gradients(gradients, norm, step.weight_sum, self.options.clip, is_fine)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        step_if(self.optimizer, is_fine)
        figures = torch.cat(
            [losses_M.double(), torch.stack([norm.double(), torch.stack(hits).sum().double()])]
        ).tolist()
        *each, told_norm, correct = figures
        learnt = Learnt(sum(each) / step.weight_sum, int(correct) / num_trained, told_norm, num_trained)
        for index, one in enumerate(each):
            if not math.isfinite(one):
                batch = self._batch(step, index)
                return replace(learnt, bad_place=bad_output(self.decoder, batch), bad_batch=batch)
        if not math.isfinite(told_norm):
            return replace(learnt, bad_place=bad_gradient(self.parameters) or "norm of the gradients")
        return learnt

    def _batch(self, step: Step, index: int) -> Batch:
        return list(micro_batches(step.batches, self.limits.micro_tokens))[index]

    def _give_back(self) -> None:
        self.replays.clear()
        self.decoder.drop_parked()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _make_smaller(self, batch: Batch) -> None:
        """Halve the micro-batches below the size that failed; if that is one document, recompute everything."""
        held = self.replays.hold_memory
        self._give_back()
        if held and not self._excused:  # by recorded work, beside which this did not fit: try once without
            self._excused = True
            return
        before, layers = self.limits, self.decoder.config.num_layers
        if batch.num_examples > 1:
            self.limits = replace(before, micro_tokens=max(1, batch.num_tokens // 2))
        elif (smallest := self._smallest(batch.num_tokens)) != before:
            self.limits = smallest
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

    def _smallest(self, tokens: int) -> Limits:
        """What takes least memory for a micro-batch of ``tokens``. Of the host's no more than ``host_room``."""
        layers, park = self.decoder.config.num_layers, 0
        if self.decoder.device.type == "cuda":
            a_layer = tokens * self.decoder.config.hidden_size * self.decoder.compute_dtype.itemsize
            park = max(self.limits.park, min(layers, host_room() // a_layer))
        return replace(
            self.limits,
            recompute=layers,
            park=park,
            halves=0,
            entire=0,
            tile=LEAST_TILE if tokens > LEAST_TILE else self.limits.tile,
            chunk_rows=min(self.limits.chunk_rows, LEAST_CHUNK_ROWS),
        )
