"""Where memory goes while training, and what time it takes.

Comes in: a ``Workload`` (what is trained, how it is held) and ``Limits``. Goes out: predicted bytes, and the time of a
token. Sums of what ``model/size.py`` and ``model/activations.py`` count; what the allocator rounds up is in ``SLACK``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, cached_property

from whippet.model.activations import Kept, Way, highest_bytes, kept_bytes
from whippet.model.config import ModelConfig
from whippet.model.size import (
    attention_flops_per_token,
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
from whippet.train.limits import Limits

LOGIT_BYTES = {"cuda": 4, "cpu": 8}
"""A logit in fp32, and on the CPU the copy that its exponential makes. Its gradient comes to it."""
OPERATIONS_PER_BYTE = 11_000
"""What a GPU computes while its link to the host carries a byte: a layer's forward pass of an 8B model at 4,096 tokens
takes 3 ms of an H200 (620 TFLOP/s), and the link 55 GB/s each way. Cards with a slower link compute less too."""
COPY_SHARE = 0.05
"""Part of a copy's time that it takes from the work beside it."""
LINK_FILLED = 0.9
"""Share of its time that the link to the host carries something, where layers park parts of different size in turn."""
WORKSPACE_BYTES = {"cuda": 2**25, "cpu": 0}
"""Of the library of products: 32 MiB on Hopper, less on older cards."""
FP8_PRODUCT = 0.55
"""Time of an operation that is computed in FP8, in operations of 16 bit: half, and the rounding of the other side."""
SLACK = 1.02
"""On what comes and goes. Six settings of 1B to 8B on an H200 took 0.7 % less to 0.2 % more than the sums without it, a
small one 2 % more."""


@dataclass(frozen=True)
class Workload:
    """What is trained and how it is held."""

    config: ModelConfig
    base: str
    """``fp32``, ``bf16``, ``fp8``, ``int8`` or ``nf4``."""
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
    fp8: bool = False
    """Whether products with the projections are computed in FP8; over an ``fp8`` base they always are."""
    by_blocks: bool = False
    """Whether attention is that of ``kernels/block_attention.py``, whose scores are in memory."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Made once: a plan asks for it tens of thousands of times."""
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @cached_property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.lora is None:
            return parameters(self.config)
        return lora_parameters(self.config, self.lora.r, self.lora.targets)

    def flops_per_token(self, recompute: int, length: int, product: float = 1.0, *, halves: int = 0) -> float:
        """Operations of a training step, a token of documents of ``length``; one in the projections counts as
        ``product``."""
        return training_flops_per_token(
            self.config,
            length,
            full=self.lora is None,
            recompute=recompute,
            halves=halves,
            supervised=self.supervised,
            product=product,
        )

    def operations_per_token(self, limits: Limits, length: int, product: float = 1.0) -> float:
        """``flops_per_token`` under ``limits``."""
        again, halves = limits.recompute - limits.entire, limits.halves - limits.entire
        return self.flops_per_token(again, length, product, halves=halves)

    @property
    def _product(self) -> float:
        """Time of an operation in the projections."""
        return FP8_PRODUCT if self.fp8 or self.base == "fp8" else 1.0

    def time_per_token(self, limits: Limits, length: int) -> float:
        """The same in the time that an operation of 16 bit takes, with that of copies which show."""
        product, layer = self._product, _layer_time(self, length)
        kept = kept_of(self)
        whole, halves = _parked_layers(limits)
        time = self.operations_per_token(limits, length, product)
        time += _copies_shown(whole, OPERATIONS_PER_BYTE * whole * kept.x, layer)
        parked = halves * kept.half + limits.entire * kept.mlp
        return time + _copies_shown(halves, OPERATIONS_PER_BYTE * parked / (LINK_FILLED if limits.entire else 1), layer)


@cache
def _layer_time(work: Workload, length: int) -> float:
    """Of a layer's forward pass, a token of documents of ``length``."""
    config = work.config
    products = 2 * layer_matrix_parameters(config) * work._product
    return products + attention_flops_per_token(config, length) / config.num_layers


def _copies_shown(layers: int, copies: float, layer: float) -> float:
    """What of the copies of ``layers`` is not hidden. Forward a layer's runs beside the next layer, backward beside
    twice as much."""
    return max(0.0, copies - layers * layer) + max(0.0, copies - layers * 2 * layer) + 2 * COPY_SHARE * copies


@cache
def kept_of(work: Workload) -> Kept:
    """What one layer keeps, a token."""
    rank, targets = (work.lora.r, work.lora.targets) if work.lora is not None else (0, ())
    dropout = work.lora is not None and work.lora.dropout > 0
    return kept_bytes(work.config, work.item, rank, targets, dropout=dropout)


def _parked_layers(limits: Limits) -> tuple[int, int]:
    """How many layers are parked that are computed again as a whole, and by halves (or entire); so they lie."""
    whole = min(limits.park, limits.recompute - limits.halves)
    return whole, limits.park - whole


def weights_bytes(work: Workload) -> int:
    """The model itself, in the dtype that it is held in."""
    return sum(weight_bytes(work.config, work.base, work.item).values())


@cache
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
    return held + states + cast + WORKSPACE_BYTES[work.device]


def moving_bytes(work: Workload, limits: Limits) -> int:
    """What a micro-batch adds at its highest: what the layers keep, and then the most of the loss and of one layer's
    backward pass, since they follow each other. When a layer's turn comes, those after it keep nothing any more: so
    the last layer of each way is looked at."""
    tokens, kept = limits.micro_tokens, kept_of(work)
    layers, again, park = work.config.num_layers, limits.recompute, limits.park
    whole = again - limits.halves
    parked_whole, parked_halves = _parked_layers(limits)
    lie = (whole - parked_whole) * kept.x + (limits.halves - parked_halves) * kept.half
    # The two parts that were parked last wait for their copies until the first is asked for; then one is coming.
    leaving = 0 if not park else kept.half if parked_halves else kept.x * min(2, park)
    coming = kept.x if park else 0
    if limits.entire:
        leaving, coming = kept.whole, kept.sum + kept.mlp
        # Forward, one layer's part leaves while the next layer has all of its own; backward, it comes.
        alive = (coming + kept.x) * tokens + _layer_bytes(work, "kept", tokens, 0)
    highest = lie * tokens + (layers - again) * kept.whole * tokens + leaving * tokens + _loss_bytes(work, limits)
    if limits.entire:
        highest = max(highest, lie * tokens + alive)
    if again < layers:
        below = lie + (layers - again - 1) * kept.whole + leaving
        highest = max(highest, below * tokens + _layer_bytes(work, "kept", tokens, limits.tile))
    if limits.halves:
        below = lie - (kept.half if parked_halves < limits.halves else 0) + coming
        highest = max(highest, below * tokens + _layer_bytes(work, "half", tokens, limits.tile))
    if whole:
        below = max(0, whole - parked_whole - 1) * kept.x + coming
        highest = max(highest, below * tokens + _layer_bytes(work, "whole", tokens, limits.tile))
    return highest + _stream_bytes(work.config) * tokens


@cache
def _layer_bytes(work: Workload, way: Way, tokens: int, tile: int) -> int:
    in_place = work.device == "cuda" and work.lora is not None and not work.lora.dropout
    kept, tile = kept_of(work), 0 if way == "kept" else tile
    held = work.config, work.base, work.item
    blocks_of = min(work.longest, tokens) if work.by_blocks else 0
    return highest_bytes(
        *held,
        kept,
        way,
        tokens,
        tile,
        in_place=in_place,
        fp8=work.fp8,
        device=work.device,
        blocks_of=blocks_of,
    )


def _stream_bytes(config: ModelConfig) -> int:
    """A token's own: its row of both rotary tables in fp32 (of both kinds of layers, if they differ); its number,
    position, label, weight and place."""
    kinds = 1 if config.local_rope_theta is None else 2
    return kinds * 2 * 4 * (config.head_dim // 2) + 4 * 8 + 4


def _loss_bytes(work: Workload, limits: Limits) -> int:
    """The final norm's input and output, the supervised rows and their gradient, a chunk of logits and its gradient,
    the output matrix as it is multiplied with; in full training its gradient, and that beside its sum."""
    config, item, tokens = work.config, work.item, limits.micro_tokens
    supervised = round(work.supervised * tokens)
    head = config.vocab_size * config.hidden_size
    rows = min(limits.chunk_rows, max(supervised, 1))
    capped = 4 if config.logit_softcap is not None and work.device == "cpu" else 0  # the slope of each
    logits = rows * config.vocab_size * (LOGIT_BYTES[work.device] + capped + item)
    hidden = 2 * (tokens + supervised) * config.hidden_size * item
    held_in = {"fp32": 4, "bf16": 2}.get(work.base, item)
    return logits + hidden + (head * item if held_in != item else 0) + (8 * head if work.lora is None else 0)


def parked_bytes(work: Workload, limits: Limits) -> int:
    """Pinned memory of the host."""
    whole, halves = _parked_layers(limits)
    kept = kept_of(work)
    return (whole * kept.x + halves * kept.half + limits.entire * kept.mlp) * limits.micro_tokens


def peak_bytes(work: Workload, limits: Limits) -> int:
    """The most memory that training takes on its device."""
    return fixed_bytes(work) + round(SLACK * moving_bytes(work, limits))
