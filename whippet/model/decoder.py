"""The decoder: token ids of a packed stream in, hidden states (and logits) out.

One class for every family; what differs is in ``ModelConfig``, and within a layer (``block.py``). It is single-device
code. Documents lie end to end, with borders (``cu_seqlens``) and positions; attention never crosses a border and there
is no padding.
T: tokens. H: hidden. V: vocabulary. N: chosen rows. S: tokens of one row of a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whippet.kernels import dense_rows
from whippet.kernels.rms_norm import rms_norm
from whippet.model.block import PROJECTIONS, Block, Stream
from whippet.model.cache import Cache
from whippet.model.config import ModelConfig
from whippet.model.park import Bay, Parking
from whippet.model.projection import Projection
from whippet.model.recompute import Layer, half_recomputed, recomputed
from whippet.model.rope import rope_tables
from whippet.model.shelf import Choice


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
        self.choice = Choice()
        """Which of the adapters on the projections' shelves each token wants."""
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
        for _, projection in self.projections():
            projection.choice = self.choice

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
        cache: Cache | None = None,
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
        cache: Cache | None = None,
    ) -> Tensor:
        """``forward`` from embeddings on (of text, or of text and images)."""
        if cache is not None:
            cache.check(cu_seqlens, max_length)
            for row, whole_SH in cache.outgrown(x_TH, cu_seqlens, max_length):
                self._fill(row, whole_SH)
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

    @contextmanager
    def choosing(self, adapter_T: Tensor) -> Iterator[None]:
        """Inside, each token of a stream has the adapter on the shelves that it names: int32 [T], 0 for none."""
        self.choice.adapter_T = adapter_T
        try:
            yield
        finally:
            self.choice.adapter_T = None

    def _fill(self, row: Cache, x_SH: Tensor) -> None:
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
        head_VH = self.head_weight.to(hidden_NH.dtype)
        if not torch.is_grad_enabled() and dense_rows.applies(hidden_NH, head_VH):
            scores_NV = dense_rows.dense_rows(hidden_NH, head_VH, torch.float32)
        else:
            scores_NV = F.linear(hidden_NH, head_VH).float()
        cap = self.config.logit_softcap
        return scores_NV if cap is None else cap * torch.tanh(scores_NV / cap)
