"""Where memory goes while training, and how much may be held at once within a budget.

Comes in: a ``Workload`` (what is trained, how it is held) and bytes. Goes out: predicted bytes, and the ``Limits`` that
are quickest among those that fit. Sums of what ``model/size.py`` counts; what the allocator rounds up is in ``SLACK``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from whippet.errors import UsageError
from whippet.infer.dense import free_bytes
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
from whippet.report.figures import size
from whippet.train.learner import LEAST_CHUNK_ROWS, LEAST_TILE, Limits

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
TILES = (16384, 8192, LEAST_TILE)
"""Tokens of a tile of the MLP half, where the whole does not fit. In smaller ones dequantising would count."""
TILE_IDLE = 0.5
"""What a tile costs before its first token, in what a micro-batch costs so."""
OPERATIONS_PER_BYTE = 11_000
"""What a GPU computes while its link to the host carries a byte: a layer's forward pass of an 8B model at 4,096 tokens
takes 3 ms of an H200 (620 TFLOP/s), and the link 55 GB/s each way. Cards with a slower link compute less too."""
COPY_SHARE = 0.05
"""Part of a copy's time that it takes from the work beside it."""
LINK_FILLED = 0.9
"""Share of its time that the link to the host carries something, where layers park parts of different size in turn."""
EIGHTHS = 8
HOST_SHARE = 0.6
"""Of the host's free memory, what may be pinned."""
WORKSPACE_BYTES = {"cuda": 2**25, "cpu": 0}
"""Of the library of products: 32 MiB on Hopper, less on older cards."""
FP8_PRODUCT = 0.55
"""Time of an operation over FP8 weights, in operations of 16 bit: half, and the rounding of the other side."""
SLACK = 1.02
"""On what comes and goes. Six settings of 1B to 8B on an H200 took 0.7 % less to 0.2 % more than the sums without it, a
small one 2 % more."""


@dataclass(frozen=True)
class Workload:
    """What is trained and how it is held."""

    config: ModelConfig
    base: str
    """``fp32``, ``bf16``, ``fp8`` or ``nf4``."""
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

    def time_per_token(self, limits: Limits, length: int) -> float:
        """The same in the time that an operation of 16 bit takes, with that of copies which show."""
        product = FP8_PRODUCT if self.base == "fp8" else 1.0
        layer = 2 * layer_matrix_parameters(self.config) * product
        layer += attention_flops_per_token(self.config, length) / self.config.num_layers
        kept = kept_of(self)
        whole, halves = _parked_layers(limits)
        time = self.operations_per_token(limits, length, product)
        time += _copies_shown(whole, OPERATIONS_PER_BYTE * whole * kept.x, layer)
        parked = halves * kept.half + limits.entire * kept.mlp
        return time + _copies_shown(halves, OPERATIONS_PER_BYTE * parked / (LINK_FILLED if limits.entire else 1), layer)


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
    return highest_bytes(work.config, work.base, work.item, kept, way, tokens, tile, in_place=in_place)


def _stream_bytes(config: ModelConfig) -> int:
    """A token's own: its row of both rotary tables in fp32; its number, position, label, weight and place."""
    return 2 * 4 * (config.head_dim // 2) + 4 * 8 + 4


def _loss_bytes(work: Workload, limits: Limits) -> int:
    """The final norm's input and output, the supervised rows and their gradient, a chunk of logits and its gradient,
    the output matrix as it is multiplied with; in full training its gradient, and that beside its sum."""
    config, item, tokens = work.config, work.item, limits.micro_tokens
    supervised = round(work.supervised * tokens)
    head = config.vocab_size * config.hidden_size
    rows = min(limits.chunk_rows, max(supervised, 1))
    logits = rows * config.vocab_size * (LOGIT_BYTES[work.device] + item)
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


def host_room() -> int:
    """What may be pinned of the host's memory that is free now."""
    return int(HOST_SHARE * free_bytes())


def choose_limits(work: Workload, budget: int, host: int | None = None) -> Limits:
    """The quickest limits whose peak is within ``budget`` bytes, and within ``host`` bytes (``host_room``) what is
    parked. UsageError naming what would fit, if none do."""
    room = host_room() if host is None and work.device == "cuda" else host or 0
    rows = _chunk_rows(work, budget)
    fitting = [limits for limits in _candidates(work, rows, room) if peak_bytes(work, limits) <= budget]
    if not fitting:
        least = _least(work, room)
        if peak_bytes(work, least) > budget:
            raise UsageError(_nothing_fits(work, budget, room))
        fitting = [least]
    return min(fitting, key=lambda limits: step_time(work, limits))


def _candidates(work: Workload, rows: int, host: int) -> Iterator[Limits]:
    """Micro-batches from the largest useful one down to the longest example, each with 0 … all layers recomputed, all
    or some of these by halves; from what lies on the device, or on a GPU as much as may waits in the host's memory."""
    tokens = max(work.longest, min(work.tokens_per_step, _most_tokens(work)))
    while True:
        for tile in (0, *(tile for tile in TILES if tile < tokens)):
            for recompute in range(1 if tile else 0, work.config.num_layers + 1):
                for halves in range(recompute + 1):
                    limits = Limits(tokens, recompute, rows, halves=halves, tile=tile)
                    yield limits
                    if recompute and work.device == "cuda" and (park := _most_parked(work, limits, host)):
                        yield replace(limits, park=park)
                        if park == halves == recompute and not tile:
                            yield from _entire(work, replace(limits, park=park), host)
        if tokens == work.longest:
            return
        tokens = max(tokens // 2, work.longest)


def _entire(work: Workload, limits: Limits, host: int) -> Iterator[Limits]:
    """The same, with an eighth, two eighths … of the parked layers entire."""
    for number in sorted({limits.park * eighths // EIGHTHS for eighths in range(1, EIGHTHS + 1)} - {0}):
        if parked_bytes(work, some := replace(limits, entire=number)) <= host:
            yield some


def _most_parked(work: Workload, limits: Limits, host: int) -> int:
    """Layers whose places fit in ``host`` bytes."""
    kept, tokens = kept_of(work), limits.micro_tokens
    whole = min(limits.recompute - limits.halves, host // (kept.x * tokens))
    if whole < limits.recompute - limits.halves:
        return whole
    return whole + min(limits.halves, (host - whole * kept.x * tokens) // (kept.half * tokens))


def _most_tokens(work: Workload) -> int:
    narrower = max(1, WIDE // work.config.hidden_size) if work.device == "cuda" else 1
    return MOST_TOKENS[work.device] * narrower


def step_time(work: Workload, limits: Limits) -> float:
    """Time of a token, that of an operation being one, with what micro-batches and tiles waste spread over their
    tokens; the larger micro-batch wins a tie."""
    tiles = -(-limits.micro_tokens // limits.tile) if limits.tile else 1
    more = TILE_IDLE * (tiles - 1) * limits.recompute / work.config.num_layers
    idle = 1 + IDLE_TOKENS[work.device] * (1 + more) / limits.micro_tokens
    return work.time_per_token(limits, work.longest) * idle


@dataclass(frozen=True)
class Longest:
    """The longest document that a budget holds."""

    tokens: int
    limits: Limits
    peak: int
    """Bytes on the device."""
    host: int
    """Bytes of the host's memory that are pinned."""


def longest_context(work: Workload, budget: int) -> Longest | None:
    """The most tokens of one document that ``budget`` bytes hold, whatever the host has; None if none do.

    With everything recomputed and parked, and the MLP half by tiles, the highest moment is attention's backward pass in
    one layer. Then a token has in it (bytes in bf16, of flash-attn-4, and of an 8B model)

        x, and the x or s that comes                    4 H             16,384
        qkv, output and small ones              2 E + 2 QD + 4 Q        20,608 and LoRA's
        the residual stream's gradient                  2 H              8,192
        gradients of output and of qkv            2 QD + 2 E            20,480
        fp32 sums for queries, for keys and values   4 QD + 8 KD        24,576
        two numbers a query, rotary tables, the token  8 Q + 4 D + 36      804

    about 91 KB; all else is the fixed part and a tile. With every layer by halves it is the same moment, and as high:
    time is saved for 2 (2 H + E + QD) bytes a layer of the host's memory instead of 2 H.
    """

    def at(tokens: int) -> Workload:
        return replace(work, longest=tokens, tokens_per_step=tokens)

    def fits(tokens: int) -> bool:
        longer = at(tokens)
        return peak_bytes(longer, _least(longer)) <= budget

    if not fits(1):
        return None
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    longest = at(low)
    limits = _least(longest)
    return Longest(low, limits, peak_bytes(longest, limits), parked_bytes(longest, limits))


def _least(work: Workload, host: int | None = None) -> Limits:
    """What takes least on the device, with as much parked as the host has room for."""
    layers = work.config.num_layers
    tile = LEAST_TILE if work.longest > LEAST_TILE else 0
    limits = Limits(work.longest, layers, LEAST_CHUNK_ROWS, tile=tile)
    if work.device != "cuda":
        return limits
    return replace(limits, park=layers if host is None else _most_parked(work, limits, host))


def _chunk_rows(work: Workload, budget: int) -> int:
    """A power of two between the least and the most, whose logits take a small share of the budget."""
    a_row = work.config.vocab_size * (LOGIT_BYTES[work.device] + work.item)
    rows = LEAST_CHUNK_ROWS
    most = max(MOST_CHUNK_ROWS, MOST_LOGITS // work.config.vocab_size) if work.device == "cuda" else MOST_CHUNK_ROWS
    while rows < most and 2 * rows * a_row <= CHUNK_SHARE * budget:
        rows *= 2
    return rows


def _nothing_fits(work: Workload, budget: int, host: int) -> str:
    needed = peak_bytes(work, _least(work, host))
    text = (
        f"memory: training needs at least {size(needed)} and may take {size(budget)} (the longest example has "
        f"{work.longest:,} tokens, and every layer would be recomputed). "
    )
    fits = [f"{told} ({size(peak)})" for told, peak in _savings(work, budget, host) if peak <= budget]
    if fits:
        return text + "It would fit with " + ", or with ".join(fits)
    return text + f"Nothing that the recipe can change alone brings it below; a budget of {size(needed)} would do"


def _savings(work: Workload, budget: int, host: int) -> Iterator[tuple[str, int]]:
    """Changes of the recipe, or of the machine, that take less, each with the least peak that it allows. Of shorter
    lengths none comes after the first that ``budget`` holds."""
    parked = _least(work)
    if parked.park and parked_bytes(work, parked) > host:
        yield f"{size(parked_bytes(work, parked) / HOST_SHARE)} of free host memory", peak_bytes(work, parked)
    if work.lora is None:
        adapter = replace(work, lora=LoraOptions(), base="nf4")
        yield 'train.method = "lora" and model.base = "nf4"', peak_bytes(adapter, _least(adapter, host))
    elif work.base != "nf4":
        quantised = replace(work, base="nf4")
        yield 'model.base = "nf4"', peak_bytes(quantised, _least(quantised, host))
    if work.optimizer != "adamw8bit":
        smaller = replace(work, optimizer="adamw8bit")
        yield 'train.optimizer = "adamw8bit"', peak_bytes(smaller, _least(smaller, host))
    length = work.longest // 2
    while length >= 128:
        shorter = replace(work, longest=length)
        peak = peak_bytes(shorter, _least(shorter, host))
        yield f"data.max_length = {length}", peak
        if peak <= budget:
            return
        length //= 2
