"""Where memory goes while training, and how much may be held at once within a budget.

Comes in: a ``Workload`` (what is trained, how it is held) and bytes. Goes out: predicted bytes, and the ``Limits`` that
are quickest among those that fit. Sums of what ``model/size.py`` counts; what the allocator rounds up is in ``SLACK``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from whippet.errors import UsageError
from whippet.model.config import ModelConfig
from whippet.model.size import (
    activation_bytes_per_token,
    backward_bytes,
    dense_bytes,
    layer_matrix_parameters,
    lora_parameters,
    optimizer_bytes,
    parameters,
    stacked_parameters,
    training_flops_per_token,
    weight_bytes,
)
from whippet.options import LoraOptions
from whippet.report.figures import size
from whippet.train.learner import LEAST_CHUNK_ROWS, Limits

MOST_TOKENS = {"cuda": 16384, "cpu": 4096}
"""Tokens of a micro-batch beyond which products get no quicker, in a model whose hidden size is at least ``WIDE``. In a
narrower one a GPU is not yet busy with so many."""
WIDE = 4096
IDLE_TOKENS = {"cuda": 768, "cpu": 128}
"""What a micro-batch costs before its first token (launches, dequantised weights), in tokens' worth of time."""
LOGIT_BYTES = {"cuda": 4, "cpu": 8}
"""A logit in fp32, and on the CPU the copy that its exponential makes. Its gradient comes to it."""
CHUNK_SHARE = 0.04
"""Share of the budget that logits may take: more rows gain little once the output matrix is read seldom."""
MOST_CHUNK_ROWS = 2048
MOST_LOGITS = 2**28
"""Logits of a chunk, where the vocabulary is small."""
PARK_COST = 0.01
"""Share of a step that the copies of all layers' inputs take, though they run beside its work."""
SLACK = 1.01


@dataclass(frozen=True)
class Workload:
    """What is trained and how it is held."""

    config: ModelConfig
    base: str
    """``fp32``, ``bf16`` or ``nf4``."""
    item: int
    """Bytes of a number in the compute dtype."""
    lora: LoraOptions | None
    """None: every weight is trained."""
    optimizer: str
    device: str
    """``cuda`` or ``cpu``."""
    longest: int
    """Tokens of the longest example: it goes through in one piece."""
    tokens_per_step: int
    supervised: float
    """Share of tokens that carry loss."""

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.lora is None:
            return parameters(self.config)
        return lora_parameters(self.config, self.lora.r, self.lora.targets)

    def flops_per_token(self, recompute: int, length: int) -> float:
        """Operations of a training step, a token of documents of ``length``."""
        return training_flops_per_token(
            self.config, length, full=self.lora is None, recompute=recompute, supervised=self.supervised
        )


def weights_bytes(work: Workload) -> int:
    """The model itself, in the dtype that it is held in."""
    return sum(weight_bytes(work.config, work.base, work.item).values())


def fixed_bytes(work: Workload) -> int:
    """What is there at every moment: weights, trained factors, gradients, optimiser states."""
    config, full = work.config, work.lora is None
    held = weights_bytes(work)
    if work.lora is not None:
        held += 4 * work.trained
        held += stacked_parameters(config, work.lora.r, work.lora.targets) * work.item if not work.lora.dropout else 0
    states = 4 * work.trained + optimizer_bytes(work.trained, work.optimizer)
    # Autograd keeps each weight of full training as it was cast.
    cast = config.num_layers * dense_bytes(layer_matrix_parameters(config), work.base, work.item) if full else 0
    return held + states + cast


def moving_bytes(work: Workload, limits: Limits) -> int:
    """What a micro-batch adds at its highest: what the layers keep, and then the more of the loss and of one layer's
    backward pass, since they follow each other."""
    config, item, tokens = work.config, work.item, limits.micro_tokens
    rank, targets = (work.lora.r, work.lora.targets) if work.lora is not None else (0, ())
    dropout = work.lora is not None and work.lora.dropout > 0

    def kept(recompute: bool) -> int:
        return activation_bytes_per_token(config, item, rank, targets, recompute, dropout=dropout)

    again = limits.recompute
    # Of parked inputs one is leaving, one is in use, one is coming.
    inputs = again - limits.park + min(limits.park, 3)
    layers = (inputs * kept(True) + (config.num_layers - again) * kept(False)) * tokens
    in_place = work.device == "cuda" and work.lora is not None and not dropout
    backward = backward_bytes(config, work.base, item, tokens, in_place=in_place)
    backward += kept(False) * tokens if again else 0
    return layers + max(_loss_bytes(work, limits), backward)


def _loss_bytes(work: Workload, limits: Limits) -> int:
    """The final norm's input and output, the supervised rows and their gradient, a chunk of logits and its gradient,
    the output matrix as it is multiplied with; in full training its gradient, and that beside its sum."""
    config, item, tokens = work.config, work.item, limits.micro_tokens
    supervised = round(work.supervised * tokens)
    head = config.vocab_size * config.hidden_size
    rows = min(limits.chunk_rows, max(supervised, 1))
    logits = rows * config.vocab_size * (LOGIT_BYTES[work.device] + item)
    hidden = 2 * (tokens + supervised) * config.hidden_size * item
    held_in = {"fp32": 4, "bf16": 2, "nf4": item}[work.base]
    return logits + hidden + (head * item if held_in != item else 0) + (8 * head if work.lora is None else 0)


def parked_bytes(work: Workload, limits: Limits) -> int:
    """Pinned memory of the host."""
    return limits.park * limits.micro_tokens * work.config.hidden_size * work.item


def peak_bytes(work: Workload, limits: Limits) -> int:
    """The most memory that training takes on its device."""
    return round(SLACK * (fixed_bytes(work) + moving_bytes(work, limits)))


def choose_limits(work: Workload, budget: int) -> Limits:
    """The quickest limits whose peak is within ``budget`` bytes. UsageError naming what would fit, if none do."""
    rows = _chunk_rows(work, budget)
    fitting = [limits for limits in _candidates(work, rows) if peak_bytes(work, limits) <= budget]
    if not fitting:
        least = _least(work)
        if peak_bytes(work, least) > budget:
            raise UsageError(_nothing_fits(work, budget))
        fitting = [least]
    return min(fitting, key=lambda limits: _cost(work, limits))


def _candidates(work: Workload, rows: int) -> Iterator[Limits]:
    """Micro-batches from the largest useful one down to the longest example, each with 0 … all layers recomputed, from
    their inputs on the device, or on a GPU from inputs that wait in the host's memory."""
    tokens = max(work.longest, min(work.tokens_per_step, _most_tokens(work)))
    while True:
        for recompute in range(work.config.num_layers + 1):
            yield Limits(tokens, recompute, rows)
            if recompute and work.device == "cuda":
                yield Limits(tokens, recompute, rows, park=recompute)
        if tokens == work.longest:
            return
        tokens = max(tokens // 2, work.longest)


def _most_tokens(work: Workload) -> int:
    narrower = max(1, WIDE // work.config.hidden_size) if work.device == "cuda" else 1
    return MOST_TOKENS[work.device] * narrower


def _cost(work: Workload, limits: Limits) -> float:
    """Operations a token, with what a micro-batch wastes spread over its tokens; the larger micro-batch wins a tie."""
    idle = 1 + IDLE_TOKENS[work.device] / limits.micro_tokens
    copies = 1 + PARK_COST * limits.park / work.config.num_layers
    return work.flops_per_token(limits.recompute, work.longest) * idle * copies


def _least(work: Workload) -> Limits:
    layers = work.config.num_layers
    return Limits(work.longest, layers, LEAST_CHUNK_ROWS, park=layers if work.device == "cuda" else 0)


def _chunk_rows(work: Workload, budget: int) -> int:
    """A power of two between the least and the most, whose logits take a small share of the budget."""
    a_row = work.config.vocab_size * (LOGIT_BYTES[work.device] + work.item)
    rows = LEAST_CHUNK_ROWS
    most = max(MOST_CHUNK_ROWS, MOST_LOGITS // work.config.vocab_size) if work.device == "cuda" else MOST_CHUNK_ROWS
    while rows < most and 2 * rows * a_row <= CHUNK_SHARE * budget:
        rows *= 2
    return rows


def _nothing_fits(work: Workload, budget: int) -> str:
    needed = peak_bytes(work, _least(work))
    text = (
        f"memory: training needs at least {size(needed)} and may take {size(budget)} (the longest example has "
        f"{work.longest:,} tokens, and every layer would be recomputed). "
    )
    fits = [f"{told} ({size(peak)})" for told, peak in _savings(work) if peak <= budget]
    if fits:
        return text + "It would fit with " + ", or with ".join(fits)
    return text + f"Nothing that the recipe can change alone brings it below; a budget of {size(needed)} would do"


def _savings(work: Workload) -> Iterator[tuple[str, int]]:
    """Changes of the recipe that take less, each with the least peak that it allows."""
    if work.lora is None:
        adapter = replace(work, lora=LoraOptions(), base="nf4")
        yield 'train.method = "lora" and model.base = "nf4"', peak_bytes(adapter, _least(adapter))
    elif work.base != "nf4":
        quantised = replace(work, base="nf4")
        yield 'model.base = "nf4"', peak_bytes(quantised, _least(quantised))
    if work.optimizer != "adamw8bit":
        smaller = replace(work, optimizer="adamw8bit")
        yield 'train.optimizer = "adamw8bit"', peak_bytes(smaller, _least(smaller))
    length = work.longest // 2
    while length >= 128:
        shorter = replace(work, longest=length)
        yield f"data.max_length = {length}", peak_bytes(shorter, _least(shorter))
        length //= 2
