"""The decoder: token ids of a packed stream in, hidden states (and logits) out.

One class for every family; what differs is in ``ModelConfig``. It is single-device code. Documents lie end to end, with
borders (``cu_seqlens``) and positions; attention never crosses a border and there is no padding.
T: tokens. H: hidden. V: vocabulary. N: chosen rows. Q: query heads. K: key-value heads. D: head_dim. E: (Q + 2K) * D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whippet.kernels.attention import packed_attention
from whippet.kernels.qk_norm import norm_and_rope
from whippet.kernels.rms_norm import add_rms_norm, rms_norm
from whippet.kernels.rope import rope
from whippet.model.cache import KVCache
from whippet.model.config import ModelConfig
from whippet.model.park import Bay, Parking
from whippet.model.projection import Projection
from whippet.model.recompute import Layer, half_recomputed, recomputed
from whippet.model.remake import remade
from whippet.model.rope import Tables, rope_tables
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

    def forward(self, x_TH: Tensor, stream: Stream, cache: KVCache | None = None) -> Tensor:
        attended_TH, x_TH = self.attend(x_TH, stream, cache)
        sum_TH, added_TH = self.mlp(attended_TH, x_TH)
        return sum_TH + added_TH

    def attend(
        self, x_TH: Tensor, stream: Stream, cache: KVCache | None = None, bay: Bay | None = None
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

    def _attention(self, turned_TE: Tensor, stream: Stream, cache: KVCache | None) -> Tensor:
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


class Decoder(nn.Module):
    """A causal language model without its tokenizer.

    ``compute_dtype`` is the dtype of activations and products. Trained parameters are kept in fp32 and cast where they
    are used. The first ``recompute`` layers drop activations and compute them again in the backward pass: all of them,
    or the last ``halves`` of these layers those of their MLP half alone. That goes by ``tile`` tokens, or as a whole
    (0). What the first ``park`` of them keep waits in the host's memory; and ``entire`` layers, evenly spread among the
    halves that are parked, park all that they would keep, and compute nothing again.
    Parameters are made on ``device`` without values; ``weights/load.py`` gives them theirs.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        compute_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "meta",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        where = torch.device(device)
        shape = (config.vocab_size, config.hidden_size)
        self.config, self.compute_dtype = config, compute_dtype
        self.recompute, self.park, self.halves, self.tile, self.entire = 0, 0, 0, 0, 0
        self._parking: Parking | None = None
        self._embedding_scale: float | None = None
        if config.scale_embeddings:
            self._embedding_scale = float(torch.tensor(config.hidden_size**0.5, device="cpu").to(compute_dtype))
        self.embedding = nn.Parameter(torch.empty(shape, device=where, dtype=dtype))
        self.layers = nn.ModuleList(
            Block(config, index, device=where, dtype=dtype) for index in range(config.num_layers)
        )
        self.norm = nn.Parameter(torch.empty(config.hidden_size, device=where, dtype=dtype))
        self.head: nn.Parameter | None = None
        if not config.tie_embeddings:
            self.head = nn.Parameter(torch.empty(shape, device=where, dtype=dtype))

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def head_weight(self) -> nn.Parameter:
        """The output matrix ``[V, H]``: the embedding itself where the two are tied."""
        return self.embedding if self.head is None else self.head

    def blocks(self) -> Iterator[Block]:
        """The layers, in order."""
        for layer in self.layers:
            assert isinstance(layer, Block)
            yield layer

    def projections(self) -> Iterator[tuple[str, Projection]]:
        """Every projection with its name, such as ``layers.3.qkv``."""
        for index, block in enumerate(self.blocks()):
            for name in PROJECTIONS:
                yield f"layers.{index}.{name}", getattr(block, name)

    def embed(self, ids_T: Tensor) -> Tensor:
        """Rows of the embedding, ``[T, H]`` in the compute dtype."""
        x_TH = F.embedding(ids_T, self.embedding).to(self.compute_dtype)
        return x_TH if self._embedding_scale is None else x_TH * self._embedding_scale

    def forward(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        *,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states ``[T, H]`` after the final norm, in the compute dtype.

        ``ids_T`` and ``positions_T`` are int64, ``cu_seqlens`` int32 ``[documents + 1]``. With a ``cache``, document b
        holds the tokens that follow those already in row b.
        """
        return self.hidden(self.embed(ids_T), positions_T, cu_seqlens, max_length, cache=cache)

    def hidden(
        self,
        x_TH: Tensor,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        *,
        cache: KVCache | None = None,
    ) -> Tensor:
        """``forward`` from embeddings on (of text, or of text and images)."""
        if cache is not None:
            cache.check(cu_seqlens, max_length)
            for row, whole_SH in cache.outgrown(x_TH, cu_seqlens, max_length):
                self._fill(cache.row(row), whole_SH)
        stream = Stream(*rope_tables(self.config, positions_T, cu_seqlens), cu_seqlens, max_length)
        recompute = self.recompute if torch.is_grad_enabled() and cache is None else 0
        if recompute and self.park:
            self._parking = Parking(self.device) if self._parking is None else self._parking
            self._parking.begin()
        for index, block in enumerate(self.blocks()):
            if index < recompute:
                x_TH = self._recomputed(block, x_TH, stream)
            else:
                x_TH = block(x_TH, stream, cache)
        if cache is not None:
            cache.advance(cu_seqlens, max_length)
        return rms_norm(x_TH, self.norm, self.config.norm_eps, offset=self.config.unit_offset)

    def _fill(self, row: KVCache, x_SH: Tensor) -> None:
        """Compute keys and values of a whole document anew, into ``row``."""
        places_S = torch.arange(len(x_SH), device=x_SH.device)
        borders = torch.tensor([0, len(x_SH)], dtype=torch.int32, device=x_SH.device)
        self.hidden(x_SH, places_S, borders, len(x_SH), cache=row)

    def _recomputed(self, block: Block, x_TH: Tensor, stream: Stream) -> Tensor:
        """What ``block`` gives, and keeps little."""
        parking = self._parking if block.index < self.park else None
        tile = self.tile if self.tile < len(x_TH) else 0
        layer = Layer(partial(block.attend, stream=stream), block.mlp, block.draws, tile)
        if block.index < self.recompute - self.halves:
            return recomputed(layer, x_TH, parking)
        bay = None if parking is None else Bay(parking)
        attended_TH, x_TH = block.attend(x_TH, stream, bay=bay)
        if bay is not None:
            bay.send()
        if parking is None or not self._is_entire(block.index):
            return half_recomputed(layer, attended_TH, x_TH, parking)
        bay = Bay(parking)
        sum_TH, added_TH = block.mlp(attended_TH, x_TH, bay=bay)
        bay.send()
        return sum_TH + added_TH

    def _is_entire(self, index: int) -> bool:
        """Whether a layer, one of the halves that are parked, is among those that are spread over them."""
        first = self.recompute - self.halves
        number, place = self.park - first, index - first
        return (place + 1) * self.entire // number > place * self.entire // number

    def drop_parked(self) -> None:
        """After a pass that failed: let go of what it has on its way to and from the host."""
        if self._parking is not None:
            self._parking.drop()

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Scores of the next token, fp32 ``[N, V]``, of rows that ``forward`` gave."""
        scores_NV = F.linear(hidden_NH, self.head_weight.to(hidden_NH.dtype)).float()
        cap = self.config.logit_softcap
        return scores_NV if cap is None else cap * torch.tanh(scores_NV / cap)
