"""How much is held at once: the quickest ``Limits`` whose memory fits a budget; and the longest context that does.

Comes in: a ``Workload`` and bytes of the device and the host. Goes out: ``Limits``; if none fit, an error that names
what the recipe could change. Memory and time of candidates are predicted (``memory.py``). There are ten thousand of
them, and of most it is known beforehand that they are slower than one that was found to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from whippet.errors import UsageError
from whippet.infer.dense import free_bytes
from whippet.options import LoraOptions
from whippet.report.figures import size
from whippet.train.allocator import GAPS
from whippet.train.limits import LEAST_CHUNK_ROWS, LEAST_TILE, Limits
from whippet.train.memory import LOGIT_BYTES, Workload, kept_of, parked_bytes, peak_bytes

MOST_TOKENS = {"cuda": 16384, "cpu": 4096}
"""Tokens of a micro-batch beyond which products get no quicker, in a model whose hidden size is at least ``WIDE``. In a
narrower one a GPU is not yet busy with so many."""
WIDE = 4096
IDLE_TOKENS = {"cuda": 768, "cpu": 128}
"""What a micro-batch costs before its first token (launches, dequantised weights), in tokens' worth of time."""
CHUNK_SHARE = 0.04
"""Share of the budget that logits may take: more rows gain little once the output matrix is read seldom."""
MOST_CHUNK_ROWS = 2048
MOST_LOGITS = 2**28
"""Logits of a chunk, where the vocabulary is small."""
TILES = (16384, 8192, LEAST_TILE)
"""Tokens of a tile of the MLP half, where the whole does not fit. In smaller ones dequantising would count."""
TILE_IDLE = 0.5
"""What a tile costs before its first token, in what a micro-batch costs so."""
EIGHTHS = 8
HOST_SHARE = 0.6
"""Of the host's free memory, what may be pinned."""


def host_room() -> int:
    """What may be pinned of the host's memory that is free now."""
    return int(HOST_SHARE * free_bytes())


def choose_limits(work: Workload, budget: int, host: int | None = None) -> Limits:
    """The quickest limits whose peak is within ``budget`` bytes, and within ``host`` bytes (``host_room``) what is
    parked. UsageError naming what would fit, if none do."""
    room = host_room() if host is None and work.device == "cuda" else host or 0
    rows = _chunk_rows(work, budget)
    best, quickest = None, math.inf

    def too_slow(limits: Limits) -> bool:
        return step_time(work, limits) >= quickest

    for limits in _candidates(work, rows, room, too_slow):
        if not too_slow(limits) and peak_bytes(work, limits) <= budget:
            best, quickest = limits, step_time(work, limits)
    if best is None:
        best = least_limits(work, room)
        if peak_bytes(work, best) > budget:
            raise UsageError(_nothing_fits(work, budget, room))
    return best


def _candidates(
    work: Workload, rows: int, host: int, too_slow: Callable[[Limits], bool] = lambda _: False
) -> Iterator[Limits]:
    """Micro-batches from the largest useful one down to the longest example, each with 0 … all layers recomputed, all
    or some of these by halves; from what lies on the device, or on a GPU as much as may waits in the host's memory.
    Left out are those that take no less time than limits that are ``too_slow``: nothing is quicker at a size than to
    compute nothing again; nor, but where layers are entire, than to compute as many layers again all by halves."""
    tokens = max(work.longest, min(work.tokens_per_step, _most_tokens(work)))
    while True:
        for tile in (0, *(tile for tile in TILES if tile < tokens)):
            if too_slow(Limits(tokens, 0, rows)):
                break
            for recompute in range(1 if tile else 0, work.config.num_layers + 1):
                slow = too_slow(Limits(tokens, recompute, rows, halves=recompute, tile=tile))
                for halves in range(recompute if slow else 0, recompute + 1):
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
    """The most tokens of one document that ``budget`` bytes hold, whatever the host has; None if none do. All that the
    allocator maps is to fit, and not its tensors alone.

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
        return peak_bytes(longer, least_limits(longer)) + GAPS <= budget

    if not fits(1):
        return None
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    longest = at(low)
    limits = least_limits(longest)
    return Longest(low, limits, peak_bytes(longest, limits), parked_bytes(longest, limits))


def least_limits(work: Workload, host: int | None = None) -> Limits:
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
    needed = peak_bytes(work, least_limits(work, host))
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
    parked = least_limits(work)
    if parked.park and parked_bytes(work, parked) > host:
        yield f"{size(parked_bytes(work, parked) / HOST_SHARE)} of free host memory", peak_bytes(work, parked)
    if work.lora is None:
        adapter = replace(work, lora=LoraOptions(), base="nf4")
        yield 'train.method = "lora" and model.base = "nf4"', peak_bytes(adapter, least_limits(adapter, host))
    elif work.base != "nf4":
        quantised = replace(work, base="nf4")
        yield 'model.base = "nf4"', peak_bytes(quantised, least_limits(quantised, host))
    if work.optimizer != "adamw8bit":
        smaller = replace(work, optimizer="adamw8bit")
        yield 'train.optimizer = "adamw8bit"', peak_bytes(smaller, least_limits(smaller, host))
    length = work.longest // 2
    while length >= 128:
        shorter = replace(work, longest=length)
        peak = peak_bytes(shorter, least_limits(shorter, host))
        yield f"data.max_length = {length}", peak
        if peak <= budget:
            return
        length //= 2
