"""One layer of the decoder, in two halves that can be computed again, parked and tiled each for itself.

In: hidden states of a packed stream, and where its tokens stand. Out: the same, with what attention and MLP add.
T: tokens. H: hidden. F: intermediate. Q: query heads. K: key-value heads. D: head_dim. E: (Q + 2K) * D.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from whippet.kernels.attention import packed_attention
from whippet.kernels.qk_norm import norm_and_rope
from whippet.kernels.rms_norm import add_rms_norm, rms_norm
from whippet.kernels.rope import rope
from whippet.model.cache import Cache
from whippet.model.config import ModelConfig
from whippet.model.park import Bay
from whippet.model.projection import Projection
from whippet.model.remake import remade
from whippet.model.rope import Tables
from whippet.model.size import matrices

PROJECTIONS = ("qkv", "o", "gate_up", "down")
"""Matrices of a layer."""


@dataclass(frozen=True)
class Stream:
    """Where the tokens of a packed stream stand: what every layer needs besides the hidden states."""

    tables: Tables
    """Rotary tables, fp32 ``[T, head_dim / 2]``."""
    local_tables: Tables
    """Those of layers with a window."""
    cu_seqlens: Tensor
    """Borders of the documents: int32 ``[documents + 1]``, from 0 to T."""
    max_length: int
    """Tokens of the longest document."""


class Block(nn.Module):
    """One layer: attention and gated MLP, each behind a norm (or between two), each added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.index = config, index
        shapes = matrices(config)

        def projection(name: str, bias: bool) -> Projection:
            rows, in_size = shapes[name]
            return Projection(rows, in_size, bias=bias, device=device, dtype=dtype)

        def norm(size: int = config.hidden_size) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, device=device, dtype=dtype))

        self.attention_norm = norm()
        self.qkv = projection("qkv", config.qkv_bias)
        self.q_norm = norm(config.head_dim) if config.qk_norm else None
        self.k_norm = norm(config.head_dim) if config.qk_norm else None
        self.o = projection("o", config.o_bias)
        self.post_attention_norm = norm() if config.post_norms else None
        self.mlp_norm = norm()
        self.gate_up = projection("gate_up", config.mlp_bias)
        self.down = projection("down", config.mlp_bias)
        self.post_mlp_norm = norm() if config.post_norms else None

    def forward(self, x_TH: Tensor, stream: Stream, cache: Cache | None = None) -> Tensor:
        attended_TH, x_TH = self.attend(x_TH, stream, cache)
        sum_TH, added_TH = self.mlp(attended_TH, x_TH)
        return sum_TH + added_TH

    def attend(
        self, x_TH: Tensor, stream: Stream, cache: Cache | None = None, bay: Bay | None = None
    ) -> tuple[Tensor, Tensor]:
        """The attention half: what it adds to ``x_TH``, and that itself. What it keeps goes to ``bay``, if there is
        one."""
        room, rows = self.qkv.room_for(x_TH.dtype), self.qkv.rows(x_TH)
        norm = partial(rms_norm, weight_H=self.attention_norm, **self._norm)
        with _parked(bay):
            normed_TH, x_TH = add_rms_norm(x_TH, None, self.attention_norm, room=room, rows=rows, **self._norm)
        with _remade(normed_TH, x_TH, norm, bay, self.qkv):
            qkv_TE = self.qkv(normed_TH, room=room, rows=rows)
        del normed_TH, rows
        # Rotary tables are all that turning alone would save, and all layers share them.
        with _parked(bay if self.config.qk_norm else None):
            qkv_TE = self._turned(qkv_TE, stream)
        with _parked(bay):
            out_TE = self._attention(qkv_TE, stream, cache)
        with _parked(bay, self.o):
            attended_TH = self.o(out_TE)
        with _parked(bay):
            return self._after(attended_TH, self.post_attention_norm), x_TH

    def mlp(
        self, attended_TH: Tensor, x_TH: Tensor | None, *, last_product: bool = True, bay: Bay | None = None
    ) -> tuple[Tensor, Tensor]:
        """The MLP half, as ``recompute.Mlp`` says. What it keeps goes to ``bay``, if there is one."""
        room, rows = self.gate_up.room_for(attended_TH.dtype), self.gate_up.rows(attended_TH)
        norm = partial(rms_norm, weight_H=self.mlp_norm, **self._norm)
        with _parked(bay):
            normed_TH, sum_TH = add_rms_norm(attended_TH, x_TH, self.mlp_norm, room=room, rows=rows, **self._norm)
        del attended_TH
        with _remade(normed_TH, sum_TH, norm, bay, self.gate_up):
            handover = self.gate_up.handover(normed_TH, self.down)
            gate_up_TF = self.gate_up(normed_TH, room=room, rows=rows, handover=handover)
        del normed_TH, rows
        # A norm behind the product reads its values, in the backward pass too.
        product, activation = last_product or self.post_mlp_norm is not None, self.config.activation
        with _parked(bay, self.down):
            added_TH = self.down.gated(gate_up_TF, product=product, handover=handover, activation=activation)
        del gate_up_TF
        with _parked(bay):
            return sum_TH, self._after(added_TH, self.post_mlp_norm)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers, for dropout."""
        found = (adapter for name in PROJECTIONS for _, adapter in getattr(self, name).adapter_items())
        return self.training and any(adapter.dropout > 0 for adapter in found)

    @property
    def _norm(self) -> dict[str, Any]:
        """What all norms share."""
        return {"eps": self.config.norm_eps, "offset": self.config.unit_offset}

    def _after(self, added_TH: Tensor, weight_H: Tensor | None) -> Tensor:
        """What a half adds to the residual stream, behind its norm if there is one."""
        return added_TH if weight_H is None else rms_norm(added_TH, weight_H, **self._norm)

    def _turned(self, qkv_TE: Tensor, stream: Stream) -> Tensor:
        """qkv with queries and keys normalised, if the model does that, and turned by their positions."""
        config, heads = self.config, (self.config.num_heads, self.config.num_kv_heads)
        cos_TE, sin_TE = stream.local_tables if config.window(self.index) else stream.tables
        if self.q_norm is None or self.k_norm is None:
            return rope(qkv_TE, cos_TE, sin_TE, *heads, config.head_dim)
        eps, offset = config.norm_eps, config.unit_offset
        return norm_and_rope(qkv_TE, self.q_norm, self.k_norm, eps, cos_TE, sin_TE, *heads, offset=offset)

    def _attention(self, turned_TE: Tensor, stream: Stream, cache: Cache | None) -> Tensor:
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        by_head = turned_TE.unflatten(-1, (heads + 2 * kv_heads, config.head_dim))
        q_TQD, k_TKD, v_TKD = by_head.split((heads, kv_heads, kv_heads), dim=1)
        how = config.attention_scale, config.window(self.index), config.attention_softcap
        if cache is not None:
            out = cache.attend(self.index, q_TQD, k_TKD, v_TKD, stream.cu_seqlens, stream.max_length, *how)
        else:
            out = packed_attention(q_TQD, k_TKD, v_TKD, stream.cu_seqlens, stream.max_length, *how)
        return out.flatten(1)


def _parked(bay: Bay | None, projection: Projection | None = None) -> AbstractContextManager[object]:
    """While this is entered, what autograd saves goes to ``bay``; of a projection not its weight."""
    return nullcontext() if bay is None else bay.hooks(only_known=projection is not None and _is_trained(projection))


def _remade(
    normed_TH: Tensor, x_TH: Tensor, norm: Callable[[Tensor], Tensor], bay: Bay | None, projection: Projection
) -> AbstractContextManager[object]:
    """While this is entered, ``normed_TH`` is not kept but made again from ``x_TH``, which may lie in ``bay``."""
    if bay is None:
        return remade(normed_TH, partial(norm, x_TH.detach()))
    return bay.remade(normed_TH, x_TH, norm, only_known=_is_trained(projection))


def _is_trained(projection: Projection) -> bool:
    return projection.weight is not None and projection.weight.requires_grad
