"""Draws the next token of many requests at once, on the device, without the host ever waiting.

Comes in: logits, one row a request, and the slots in which the requests' settings lie. Goes out: ids, whether the
logits could be drawn from, and log-probabilities, all still on the device. A row's token depends on its own logits,
settings, seed and number of tokens so far; never on the rows beside it, their order or their number.

Shapes: R slots, B rows of this step, S of them sampled (not greedy), V vocabulary, W words of 32 bits, N alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whippet.infer.adjust import Adjustments, masked, sent
from whippet.infer.sampling import Sampling
from whippet.infer.uniform import key, uniform
from whippet.kernels.truncate import truncate, whole

GREEDY = Sampling()


@dataclass(frozen=True)
class Draws:
    """One token a row."""

    ids_B: Tensor
    """int64; some token also where ``finite_B`` is False."""
    finite_B: Tensor
    """bool: False where a logit is NaN or infinite, or no token is left that could be drawn."""
    logprob_B: Tensor | None = None
    """fp32: log-probability of the token under the model itself, before anything that a request wants."""
    top_ids_BN: Tensor | None = None
    top_logprobs_BN: Tensor | None = None
    """The likeliest tokens under the model itself, the likeliest first; of equal ones the smaller id."""


@dataclass(frozen=True)
class Plan:
    """What has to be computed for some rows: all of it known on the host. A CUDA graph of ``Drawer.draw`` may be
    replayed for rows with an equal plan, as long as mask, top and logprobs are of the same kind too."""

    rows: int
    sampled: int
    truncated: int
    penalties: bool
    biases: bool


class Drawer:
    """Settings, streams of random numbers and counts of ``rows`` slots, and one slot more that nobody takes: rows that
    only fill a batch up to a size are of slot number ``rows``; they are greedy."""

    def __init__(self, rows: int, vocab: int, device: torch.device) -> None:
        self._vocab, self._device = vocab, device
        self.spare = rows
        self._samplings = [GREEDY] * (rows + 1)
        self._floats_R3 = torch.tensor([1.0, 1.0, 0.0]).repeat(rows + 1, 1).to(device)
        """Temperature (1 where greedy), top_p, min_p."""
        self._whole_R5 = torch.zeros((rows + 1, 5), dtype=torch.int64, device=device)
        """Key of the stream, tokens drawn, top_k, whether sampled, whether truncated."""
        self._adjustments = Adjustments(rows + 1, vocab, device)

    def place(self, slot: int, sampling: Sampling, prompt: Sequence[int], reply: Sequence[int] = ()) -> None:
        """A request takes ``slot``. ``reply``: what it has drawn already, where it goes on after a break.

        A request without a seed gets one drawn from the system here. UsageError if it biases a token that is not there.
        """
        assert 0 <= slot < self.spare, slot
        sampling.check(self._vocab)
        self._samplings[slot] = sampling
        sampled = sampling.temperature > 0
        temperature = max(sampling.temperature, torch.finfo(torch.float32).tiny) if sampled else 1.0
        floats = (temperature, sampling.top_p, sampling.min_p)
        whole = (key(sampling.seed), len(reply), min(sampling.top_k, self._vocab), sampled, sampling.filters)
        self._floats_R3[slot].copy_(sent(floats, torch.float32, self._device), non_blocking=True)
        self._whole_R5[slot].copy_(sent(whole, torch.int64, self._device), non_blocking=True)
        self._adjustments.place(slot, sampling, prompt, reply)

    def free(self, slot: int) -> None:
        """The request in ``slot`` has ended; the slot is greedy, here and on the device, which have to agree."""
        self._samplings[slot] = GREEDY
        self._whole_R5[slot, 3:].zero_()

    def plan(self, slots: Sequence[int]) -> Plan:
        """What ``draw`` has to compute for rows of these slots."""
        chosen = [self._samplings[slot] for slot in slots]
        return Plan(
            rows=len(slots),
            sampled=sum(sampling.temperature > 0 for sampling in chosen),
            truncated=sum(sampling.filters for sampling in chosen),
            penalties=any(sampling.penalises for sampling in chosen),
            biases=any(sampling.logit_bias for sampling in chosen),
        )

    @torch.no_grad()
    def draw(
        self,
        logits_BV: Tensor,
        slots_B: Tensor,
        slots: Sequence[int],
        mask: Tensor | None = None,
        top: int = 0,
        logprobs: bool = False,
    ) -> Draws:
        """One token for each row; the counts of its slot go on.

        logits: fp32, bf16 or fp16. slots_B: int64, the slot of each row; ``slots`` the same on the host; no slot twice
        but the spare one. mask: int32 [B, W], the tokens that a grammar allows, all bits set where there is none. top:
        so many of the likeliest tokens are told too. Nothing here makes the host wait for the device.
        """
        plan = self.plan(slots)
        ids_B = greedy(logits_BV)
        finite_B = _finite(logits_BV, ids_B)
        chosen_BV = logits_BV
        if plan.penalties or plan.biases or mask is not None:
            chosen_BV = self._adjusted(logits_BV.float(), slots_B, plan, mask)
            ids_B = greedy(chosen_BV)
            finite_B = finite_B & _finite(chosen_BV, ids_B)
        if plan.sampled:
            ids_B = self._sampled(chosen_BV, ids_B, slots_B, plan)
        if plan.penalties:
            self._adjustments.count(slots_B, ids_B)
        return Draws(ids_B, finite_B, *_told(logits_BV, ids_B, top, logprobs))

    def _adjusted(self, logits_BV: Tensor, slots_B: Tensor, plan: Plan, mask: Tensor | None) -> Tensor:
        if plan.biases:
            logits_BV = self._adjustments.biases(logits_BV, slots_B)
        if plan.penalties:
            logits_BV = self._adjustments.penalties(logits_BV, slots_B)
        return logits_BV if mask is None else masked(logits_BV, mask)

    def _sampled(self, logits_BV: Tensor, ids_B: Tensor, slots_B: Tensor, plan: Plan) -> Tensor:
        """``ids_B`` with the tokens of the rows that are not greedy replaced by ones that are drawn."""
        whole_B5 = self._whole_R5[slots_B]
        # How many rows are meant is known here, so that which ones they are need not be: shapes never wait.
        rows_S = _where(whole_B5[:, 3], plan.sampled)
        key_S, place_S, top_k_S, _, truncated_S = whole_B5[rows_S].unbind(-1)
        temperature_S, top_p_S, min_p_S = self._floats_R3[slots_B[rows_S]].unbind(-1)
        logits_SV = logits_BV[rows_S].float()
        # The likeliest becomes 0 first: a temperature near 0 then makes others -inf, and never one inf.
        probs_SV = ((logits_SV - logits_SV.amax(-1, keepdim=True)) / temperature_S[:, None]).softmax(-1)
        if plan.truncated < plan.sampled:
            weights_SV = whole(probs_SV)
        if plan.truncated:
            some = _where(truncated_S, plan.truncated)
            kept = truncate(logits_SV[some], probs_SV[some], top_k_S[some], top_p_S[some], min_p_S[some])
            weights_SV = kept if plan.truncated == plan.sampled else weights_SV.index_copy(0, some, kept)
        drawn_S = pick(weights_SV, uniform(key_S, place_S))
        self._whole_R5[:, 1].index_add_(0, slots_B, torch.ones_like(slots_B))
        return ids_B.index_copy(0, rows_S, drawn_S)


def greedy(logits_BV: Tensor) -> Tensor:
    """The likeliest token of each row, int64 [B]; of equal ones the smaller id. A CUDA graph can hold it."""
    return logits_BV.argmax(-1)


def pick(weights_SV: Tensor, uniform_S: Tensor) -> Tensor:
    """The first id, int64 [S], at which the running sum of the whole ``weights_SV`` exceeds its share ``uniform_S``
    (float64, [0, 1)) of the total: one that weighs something, if any does."""
    sums_SV = weights_SV.cumsum(-1)
    total_S = sums_SV[:, -1]
    share_S = (uniform_S * total_S.double()).long()  # below the total: 1 - 2^-53 of it rounds down
    ids_S1 = torch.searchsorted(sums_SV, share_S[:, None], right=True)
    # Rows that are not finite have no sums; what they get must still be a token.
    return ids_S1[:, 0].clamp(0, weights_SV.shape[-1] - 1)


def _told(
    logits_BV: Tensor, ids_B: Tensor, top: int, logprobs: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Log-probabilities of ``ids_B``; the ``top`` likeliest ids and theirs. Of the raw logits, in fp32."""
    if not logprobs and not top:
        return None, None, None
    logprobs_BV = logits_BV.float().log_softmax(-1)
    own_B = logprobs_BV.gather(-1, ids_B[:, None])[:, 0] if logprobs else None
    if not top:
        return own_B, None, None
    ids_BN = likeliest(logits_BV.float(), top)
    return own_B, ids_BN, logprobs_BV.gather(-1, ids_BN)


def likeliest(logits_BV: Tensor, most: int) -> Tensor:
    """Ids [B, most] of the likeliest tokens of fp32 logits, in order; of equal ones the smaller id first.

    torch.topk leaves open which of equal ones it takes, and 16-bit logits have many: here value and id are one number.
    """
    bits_BV = (logits_BV + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: equal numbers have equal bits then
    ordered_BV = torch.where(bits_BV < 0, bits_BV ^ 0x7FFFFFFF, bits_BV).long()
    numbered_BV = (ordered_BV << 32) - torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    return -numbered_BV.topk(min(most, logits_BV.shape[-1])).values & 0xFFFFFFFF


def _finite(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    """Whether each row can be drawn from, bool [B]: its largest logit, that of ``ids_B``, is finite exactly if none is
    NaN or inf and not all are -inf."""
    return logits_BV.gather(-1, ids_B[:, None])[:, 0].isfinite()


def _where(flags_B: Tensor, count: int) -> Tensor:
    """Indices [count] of the rows whose flag (0 or 1) is set, of which there are ``count``."""
    if count == len(flags_B):
        return torch.arange(count, device=flags_B.device)
    return flags_B.argsort(descending=True, stable=True)[:count]
