"""Keys and values of many sequences in pages, so that sequences of any length share one piece of memory.

``PagedCache`` is that memory. ``Rows`` are some of its sequences for one pass of the decoder: it stands where a
``KVCache`` does, and says for each row which pages hold its tokens and how many those are. Page 0 belongs to nobody:
rows that only fill a batch up write there.

L: layers. P: pages. S: tokens of a page. B: rows. N: pages of a row. T: new tokens of all rows. K: key-value heads.
Q: query heads. D: head_dim. H: hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whippet.errors import UsageError
from whippet.kernels.attention import cached_attention, packed_attention
from whippet.kernels.paged_attention import Lying, gathered, lying, paged_attention
from whippet.model.cache import Cache
from whippet.model.config import ModelConfig

PAGE = 64
"""Tokens of a page."""


class PagedCache:
    """``pages`` pages for all layers; they are the same pages in each."""

    def __init__(self, config: ModelConfig, pages: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (config.num_layers, pages, PAGE, config.num_kv_heads, config.head_dim)
        # Zeros, not empty memory: a masked position still meets a product, and 0 * NaN is NaN.
        self.keys_LPSKD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LPSKD = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def pages(self) -> int:
        return self.keys_LPSKD.shape[1]


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page, keys and values of all layers."""
    return 2 * config.num_layers * PAGE * config.num_kv_heads * config.head_dim * dtype.itemsize


class Rows:
    """Some sequences of a cache, and where their new tokens go.

    table_BN: int32, the pages of each row. lengths_B: int32, tokens that each row holds before the new ones. ``held``:
    the same on the host, where new tokens may be many; None where each row gets one token, whatever it holds.
    """

    def __init__(self, cache: PagedCache, table_BN: Tensor, lengths_B: Tensor, held: list[int] | None = None) -> None:
        self._cache, self._table_BN, self._lengths_B, self._held = cache, table_BN, lengths_B, held
        self._slots_T: Tensor | None = None
        self._known: list[Lying] | None = None
        self._seen_B = lengths_B + 1 if held is None else lengths_B

    def check(self, cu_seqlens: Tensor, max_length: int) -> None:
        """Raise UsageError if the new tokens are not those of these rows."""
        if len(cu_seqlens) - 1 != len(self._lengths_B):
            raise UsageError(f"the cache holds {len(self._lengths_B)} rows, and {len(cu_seqlens) - 1} documents came")
        if self._held is None and max_length != 1:
            raise UsageError(f"rows that get one token each met {max_length} tokens")

    def outgrown(self, x_TH: Tensor, cu_seqlens: Tensor, max_length: int) -> list[tuple[Cache, Tensor]]:
        """None: who asks computes a row anew that outgrows the original context of LongRoPE (``infer/batching.py``)."""
        return []

    def advance(self, cu_seqlens: Tensor, max_length: int) -> None:
        """Nothing: who asks counts the tokens."""

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
        keys_PSKD, values_PSKD = self._cache.keys_LPSKD[layer], self._cache.values_LPSKD[layer]
        slots_T = self._slots(cu_seqlens, len(q_TQD))
        keys_PSKD.flatten(0, 1).index_copy_(0, slots_T, k_TKD.to(keys_PSKD.dtype))
        values_PSKD.flatten(0, 1).index_copy_(0, slots_T, v_TKD.to(values_PSKD.dtype))
        if self._held is None:
            if self._known is None and q_TQD.device.type == "cpu":
                self._known = lying(self._table_BN, self._seen_B, PAGE)
            return paged_attention(q_TQD, keys_PSKD, values_PSKD, self._table_BN, self._seen_B, *how, known=self._known)
        if not any(self._held):
            return packed_attention(q_TQD, k_TKD, v_TKD, cu_seqlens, max_length, *how)
        borders, parts = cu_seqlens.tolist(), []
        for row, held in enumerate(self._held):
            new = slice(borders[row], borders[row + 1])
            length = held + borders[row + 1] - borders[row]
            table_1N = self._table_BN[row : row + 1, : -(-length // PAGE)]
            lengths_1 = torch.full((1,), length, dtype=torch.int32, device=q_TQD.device)
            keys_1TKD, values_1TKD = (gathered(pages, table_1N, lengths_1) for pages in (keys_PSKD, values_PSKD))
            parts.append(cached_attention(q_TQD[None, new], keys_1TKD, values_1TKD, lengths_1, *how)[0])
        return torch.cat(parts)

    def _slots(self, cu_seqlens: Tensor, total: int) -> Tensor:
        """Where in the cache each of the ``total`` new tokens goes, int64 [T]; the same for all layers."""
        if self._slots_T is not None:
            return self._slots_T
        if self._held is None:
            rows_T, places_T = torch.arange(total, device=cu_seqlens.device), self._lengths_B.long()
        else:
            index_B = torch.arange(len(self._lengths_B), device=cu_seqlens.device)
            rows_T = torch.repeat_interleave(index_B, cu_seqlens.diff(), output_size=total)
            places_T = torch.arange(total, device=cu_seqlens.device) + (self._lengths_B - cu_seqlens[:-1])[rows_T]
        self._slots_T = self._table_BN[rows_T, places_T // PAGE].long() * PAGE + places_T % PAGE
        return self._slots_T
