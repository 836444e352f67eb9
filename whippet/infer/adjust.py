"""What changes the logits before a token is drawn: biases, penalties for what came before, and the grammar's mask.

Comes in: fp32 logits, and which slot each row belongs to. Goes out: fp32 logits. A request holds a slot while it runs;
its tokens are counted there on the device, in tables that are made when the first request needs them.

Shapes: R slots, B rows of this step, V vocabulary, M biases, W words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whippet.infer.sampling import MOST_BIASES, Sampling


class Adjustments:
    """Biases and counts of R slots. A slot that wants neither passes its logits on unchanged, to the bit."""

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        self._slots, self._vocab, self._device = slots, vocab, device
        self._factors_R3 = torch.tensor([1.0, 0.0, 0.0]).repeat(slots, 1).to(device)
        """Repetition, frequency and presence penalty."""
        self._in_prompt_RV: Tensor | None = None
        self._in_reply_RV: Tensor | None = None
        self._bias_ids_RM: Tensor | None = None
        self._biases_RM: Tensor | None = None
        self._biased: set[int] = set()

    def place(self, slot: int, sampling: Sampling, prompt: Sequence[int], reply: Sequence[int]) -> None:
        """A request takes ``slot``; ``reply`` are tokens that it has drawn already."""
        factors = (max(sampling.repetition_penalty, 1e-30), sampling.frequency_penalty, sampling.presence_penalty)
        self._factors_R3[slot].copy_(self._sent(factors, torch.float32), non_blocking=True)
        if sampling.penalises:
            self._count(slot, prompt, reply)
        self._bias(slot, sampling)

    def biases(self, logits_BV: Tensor, slots_B: Tensor) -> Tensor:
        """Logits with the biases of their slots added."""
        assert self._bias_ids_RM is not None and self._biases_RM is not None
        # A slot's ids are all different but for the places that are not used, and those add 0 to token 0.
        return logits_BV.scatter_add(-1, self._bias_ids_RM[slots_B], self._biases_RM[slots_B])

    def penalties(self, logits_BV: Tensor, slots_B: Tensor) -> Tensor:
        """Logits with the penalties of their slots, by what is in prompt and reply."""
        assert self._in_prompt_RV is not None and self._in_reply_RV is not None
        repetition_B1, frequency_B1, presence_B1 = self._factors_R3[slots_B].split(1, dim=-1)
        counts_BV = self._in_reply_RV[slots_B]
        seen_BV = self._in_prompt_RV[slots_B] | (counts_BV > 0)
        changed_BV = torch.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
        logits_BV = torch.where(seen_BV, changed_BV, logits_BV)
        return logits_BV - frequency_B1 * counts_BV - presence_B1 * (counts_BV > 0)

    def count(self, slots_B: Tensor, ids_B: Tensor) -> None:
        """Each row of ``slots_B`` has drawn its token of ``ids_B``."""
        assert self._in_reply_RV is not None
        ones_B = torch.ones_like(ids_B, dtype=torch.int32)
        self._in_reply_RV.view(-1).index_add_(0, slots_B * self._vocab + ids_B, ones_B)

    def _count(self, slot: int, prompt: Sequence[int], reply: Sequence[int]) -> None:
        if self._in_prompt_RV is None or self._in_reply_RV is None:
            shape = (self._slots, self._vocab)
            self._in_prompt_RV = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._in_reply_RV = torch.zeros(shape, dtype=torch.int32, device=self._device)
        self._in_prompt_RV[slot].zero_().index_fill_(0, self._sent(prompt, torch.int64), True)
        self._in_reply_RV[slot].zero_()
        if reply:
            ids_T = self._sent(reply, torch.int64)
            self._in_reply_RV[slot].index_add_(0, ids_T, torch.ones_like(ids_T, dtype=torch.int32))

    def _bias(self, slot: int, sampling: Sampling) -> None:
        if not sampling.logit_bias and slot not in self._biased:
            return
        if self._bias_ids_RM is None or self._biases_RM is None:
            shape = (self._slots, MOST_BIASES)
            self._bias_ids_RM = torch.zeros(shape, dtype=torch.int64, device=self._device)
            self._biases_RM = torch.zeros(shape, dtype=torch.float32, device=self._device)
        self._bias_ids_RM[slot].zero_()
        self._biases_RM[slot].zero_()
        self._biased.discard(slot)
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias, strict=True)
            self._bias_ids_RM[slot, : len(ids)].copy_(self._sent(ids, torch.int64), non_blocking=True)
            self._biases_RM[slot, : len(ids)].copy_(self._sent(values, torch.float32), non_blocking=True)
            self._biased.add(slot)

    def _sent(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return sent(values, dtype, self._device)


def masked(logits_BV: Tensor, mask_BW: Tensor) -> Tensor:
    """Logits, -inf where the bit of a token is not set: bit ``v % 32`` of word ``v // 32`` (int32) is token ``v``'s."""
    bit_32 = torch.ones(32, dtype=torch.int32, device=mask_BW.device) << torch.arange(32, device=mask_BW.device).int()
    allowed_BV = (mask_BW[..., None] & bit_32).ne(0).flatten(1)[:, : logits_BV.shape[-1]]
    return logits_BV.masked_fill(~allowed_BV, -torch.inf)


def sent(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host on the device, without waiting for what the device is doing."""
    host = torch.tensor(list(values), dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
