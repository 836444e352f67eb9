"""Keys and values of the tokens seen so far, so that decoding computes each token once.

One contiguous pair of tensors for all layers. Rows are sequences; each has its own length. New tokens come as a packed
stream, one document a row: all prompts at once (prefill), then one token a row, or the next turn of a chat.

LongRoPE turns a document that has outgrown the original context by other frequencies, its first token too, and all that
deeper layers made of it changes. So for that the embeddings are kept as well, and such a row is computed anew.
L: layers. B: rows. S: capacity in tokens. Q: query heads. K: key-value heads. D: head_dim. T: new tokens of all rows.
H: hidden.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from whippet.errors import UsageError
from whippet.kernels.attention import cached_attention, packed_attention
from whippet.model.config import ModelConfig


class Cache(Protocol):
    """What the decoder asks of whoever keeps keys and values; ``KVCache`` says what each means."""

    def check(self, cu_seqlens: Tensor, max_length: int) -> None: ...

    def outgrown(self, x_TH: Tensor, cu_seqlens: Tensor, max_length: int) -> list[tuple[Cache, Tensor]]: ...

    def attend(
        self,
        layer: int,
        q_TQD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        scale: float,
        window: int = 0,
        softcap: float | None = None,
    ) -> Tensor: ...

    def advance(self, cu_seqlens: Tensor, max_length: int) -> None: ...


class KVCache:
    """The state of one batch of sequences. ``lengths_B`` counts the tokens that each row holds."""

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.num_layers, rows, capacity, config.num_kv_heads, config.head_dim)
        # Zeros, not empty memory: a masked position still meets a product, and 0 * NaN is NaN.
        self.keys_LBSKD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBSKD = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths_B = torch.zeros(rows, dtype=torch.int32, device=device)
        self.longest = 0
        """An upper bound of ``lengths_B``, known without asking the device."""
        scaling = config.rope_scaling
        self._border = scaling.original_context if scaling is not None and scaling.kind == "longrope" else 0
        """A row is turned otherwise when it has more tokens; 0: never."""
        self._embeddings_BSH = torch.zeros(
            rows, capacity if self._border else 0, config.hidden_size, dtype=dtype, device=device
        )

    @property
    def rows(self) -> int:
        return self.keys_LBSKD.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys_LBSKD.shape[2]

    def select(self, rows_N: Tensor) -> None:
        """Keep only these rows (indices), in this order; finished sequences leave the batch so."""
        self.keys_LBSKD = self.keys_LBSKD[:, rows_N]
        self.values_LBSKD = self.values_LBSKD[:, rows_N]
        self._embeddings_BSH = self._embeddings_BSH[rows_N]
        self.lengths_B = self.lengths_B[rows_N]

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens a row; what is held stays. Replies of unknown length begin small so."""
        more = (0, 0, 0, 0, 0, capacity - self.capacity)
        self.keys_LBSKD, self.values_LBSKD = F.pad(self.keys_LBSKD, more), F.pad(self.values_LBSKD, more)
        if self._border:
            self._embeddings_BSH = F.pad(self._embeddings_BSH, more[2:])

    def outgrown(self, x_TH: Tensor, cu_seqlens: Tensor, max_length: int) -> list[tuple[Cache, Tensor]]:
        """Keep the new tokens' embeddings, if the model has LongRoPE. Returns the rows that hold tokens which were
        turned as in a short document, and will be long with the new ones; each with all its embeddings, [S, H]."""
        if not self._border:
            return []
        self._embeddings_BSH[self._places(cu_seqlens, len(x_TH))] = x_TH.to(self._embeddings_BSH.dtype)
        if self.longest == 0 or self.longest + max_length <= self._border:
            return []
        before, after = self.lengths_B.tolist(), (self.lengths_B + cu_seqlens.diff()).tolist()
        outgrown = [row for row in range(self.rows) if 0 < before[row] <= self._border < after[row]]
        return [(self.row(row), self._embeddings_BSH[row, : after[row]]) for row in outgrown]

    def row(self, index: int) -> KVCache:
        """One row, as if nothing were in it: what is stored there, is stored here."""
        one = copy(self)
        one.keys_LBSKD = self.keys_LBSKD[:, index : index + 1]
        one.values_LBSKD = self.values_LBSKD[:, index : index + 1]
        one.lengths_B, one.longest, one._border = torch.zeros_like(self.lengths_B[:1]), 0, 0
        return one

    def attend(
        self,
        layer: int,
        q_TQD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        scale: float,
        window: int = 0,
        softcap: float | None = None,
    ) -> Tensor:
        """Store the new keys and values of one layer, and attend from the new queries to all of their rows' tokens, or
        to the last ``window``."""
        how = scale, window, softcap
        self._store(layer, k_TKD, v_TKD, cu_seqlens)
        if self.longest == 0:
            return packed_attention(q_TQD, k_TKD, v_TKD, cu_seqlens, max_length, *how)
        seen = self.longest + max_length
        keys_BSKD, values_BSKD = self.keys_LBSKD[layer, :, :seen], self.values_LBSKD[layer, :, :seen]
        lengths_B = self.lengths_B + cu_seqlens.diff()
        if len(q_TQD) == self.rows * max_length:
            q_BTQD = q_TQD.unflatten(0, (self.rows, max_length))
            return cached_attention(q_BTQD, keys_BSKD, values_BSKD, lengths_B, *how).flatten(0, 1)
        borders = cu_seqlens.tolist()
        parts = []
        for row in range(self.rows):
            one = slice(row, row + 1)
            q_1TQD = q_TQD[None, borders[row] : borders[row + 1]]
            parts.append(cached_attention(q_1TQD, keys_BSKD[one], values_BSKD[one], lengths_B[one], *how)[0])
        return torch.cat(parts)

    def advance(self, cu_seqlens: Tensor, max_length: int) -> None:
        """Count the new tokens, once all layers have stored them."""
        self.lengths_B = self.lengths_B + cu_seqlens.diff()
        self.longest += max_length

    def check(self, cu_seqlens: Tensor, max_length: int) -> None:
        """Raise UsageError if the new tokens do not fit."""
        if len(cu_seqlens) - 1 != self.rows:
            raise UsageError(f"the cache holds {self.rows} rows, and {len(cu_seqlens) - 1} documents came")
        if self.longest + max_length > self.capacity:
            raise UsageError(
                f"{self.longest} tokens and {max_length} new ones do not fit the cache of {self.capacity} tokens"
            )

    def _places(self, cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Row and place of each of the ``total`` new tokens."""
        index_B = torch.arange(self.rows, device=cu_seqlens.device)
        rows_T = torch.repeat_interleave(index_B, cu_seqlens.diff(), output_size=total)
        places_T = torch.arange(total, device=cu_seqlens.device) + (self.lengths_B - cu_seqlens[:-1])[rows_T]
        return rows_T, places_T

    def _store(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, cu_seqlens: Tensor) -> None:
        rows_T, places_T = self._places(cu_seqlens, len(k_TKD))
        self.keys_LBSKD[layer, rows_T, places_T] = k_TKD.to(self.keys_LBSKD.dtype)
        self.values_LBSKD[layer, rows_T, places_T] = v_TKD.to(self.values_LBSKD.dtype)
