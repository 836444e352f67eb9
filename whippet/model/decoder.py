"""The decoder: token ids of a packed stream in, hidden states (and logits) out.

One class for every family; what differs is in ``ModelConfig``. It is single-device code. Documents lie end to end, with
borders (``cu_seqlens``) and positions; attention never crosses a border and there is no padding.
T: tokens. H: hidden. V: vocabulary. N: chosen rows. Q: query heads. K: key-value heads. D: head_dim. E: (Q + 2K) * D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whippet.kernels.attention import packed_attention
from whippet.kernels.rms_norm import add_rms_norm, rms_norm
from whippet.kernels.rope import rope
from whippet.model.cache import KVCache
from whippet.model.config import ModelConfig
from whippet.model.park import Parking
from whippet.model.projection import Projection
from whippet.model.recompute import Place, recomputed
from whippet.model.remake import remade
from whippet.model.rope import rope_tables


@dataclass(frozen=True)
class Stream:
    """Where the tokens of a packed stream stand: what every layer needs besides the hidden states."""

    cos_TE: Tensor
    """Rotary tables, fp32 ``[T, head_dim / 2]``."""
    sin_TE: Tensor
    cu_seqlens: Tensor
    """Borders of the documents: int32 ``[documents + 1]``, from 0 to T."""
    max_length: int
    """Tokens of the longest document."""


class Block(nn.Module):
    """One layer: attention and gated MLP, each behind a norm, each added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.index = config, index
        hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_heads * head, config.num_kv_heads * head

        def projection(rows: dict[str, int], in_size: int, bias: bool) -> Projection:
            return Projection(rows, in_size, bias=bias, device=device, dtype=dtype)

        self.attention_norm = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.qkv = projection({"q_proj": queries, "k_proj": keys, "v_proj": keys}, hidden, config.qkv_bias)
        self.o = projection({"o_proj": hidden}, queries, config.o_bias)
        self.mlp_norm = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.gate_up = projection({"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias)
        self.down = projection({"down_proj": hidden}, inner, config.mlp_bias)

    def forward(self, x_TH: Tensor, stream: Stream, cache: KVCache | None = None) -> Tensor:
        x_TH, y_TH = self.terms(x_TH, stream, cache)
        return x_TH + y_TH

    def terms(
        self, x_TH: Tensor, stream: Stream, cache: KVCache | None = None, *, last_product: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The residual stream after attention, and what the MLP adds to it. Without ``last_product`` the values of the
        second are not computed: its graph alone is what a backward pass needs."""
        eps = self.config.norm_eps
        room = self.qkv.room
        normed_TH = rms_norm(x_TH, self.attention_norm, eps, room)
        with remade(normed_TH, partial(rms_norm, x_TH.detach(), self.attention_norm, eps)):
            qkv_TE = self.qkv(normed_TH, room=room)
        attended_TH = self.o(self._attention(qkv_TE, stream, cache))
        room = self.gate_up.room
        normed_TH, x_TH = add_rms_norm(attended_TH, x_TH, self.mlp_norm, eps, room)
        with remade(normed_TH, partial(rms_norm, x_TH.detach(), self.mlp_norm, eps)):
            gate_up_TF = self.gate_up(normed_TH, room=room)
        return x_TH, self.down.gated(gate_up_TF, product=last_product)

    def _attention(self, qkv_TE: Tensor, stream: Stream, cache: KVCache | None) -> Tensor:
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        turned_TE = rope(qkv_TE, stream.cos_TE, stream.sin_TE, heads, kv_heads, config.head_dim)
        by_head = turned_TE.unflatten(-1, (heads + 2 * kv_heads, config.head_dim))
        q_TQD, k_TKD, v_TKD = by_head.split((heads, kv_heads, kv_heads), dim=1)
        scale = config.head_dim**-0.5
        if cache is not None:
            out = cache.attend(self.index, q_TQD, k_TKD, v_TKD, stream.cu_seqlens, stream.max_length, scale)
        else:
            out = packed_attention(q_TQD, k_TKD, v_TKD, stream.cu_seqlens, stream.max_length, scale)
        return out.flatten(1)


class Decoder(nn.Module):
    """A causal language model without its tokenizer.

    ``compute_dtype`` is the dtype of activations and products. Trained parameters are kept in fp32 and cast where they
    are used. The activations of the first ``recompute`` layers are dropped and computed again in the backward pass; the
    inputs of the first ``park`` of those wait for it in the host's memory.
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
        self.recompute, self.park = 0, 0
        self._parking: Parking | None = None
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
            for name in ("qkv", "o", "gate_up", "down"):
                yield f"layers.{index}.{name}", getattr(block, name)

    def embed(self, ids_T: Tensor) -> Tensor:
        """Rows of the embedding, ``[T, H]`` in the compute dtype."""
        return F.embedding(ids_T, self.embedding).to(self.compute_dtype)

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
        stream = Stream(*rope_tables(self.config, positions_T), cu_seqlens, max_length)
        for index, block in enumerate(self.blocks()):
            if index < self.recompute and torch.is_grad_enabled():
                again = partial(block.terms, stream=stream, last_product=False)
                x_TH = recomputed(partial(block, stream=stream), again, x_TH, self._place(index))
            else:
                x_TH = block(x_TH, stream, cache)
        if cache is not None:
            cache.advance(cu_seqlens, max_length)
        return rms_norm(x_TH, self.norm, self.config.norm_eps)

    def _place(self, index: int) -> Place | None:
        """Where the input of a recomputed layer waits, if not on the device."""
        if index >= self.park:
            return None
        if self._parking is None:
            self._parking = Parking(self.device)
        return self._parking, index

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Scores of the next token, fp32 ``[N, V]``, of rows that ``forward`` gave."""
        return F.linear(hidden_NH, self.head_weight.to(hidden_NH.dtype)).float()
