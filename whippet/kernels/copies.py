"""Many matrices scaled, cast and put into their places, in one launch.

    target_i = scale_i · source_i

An adapter of all projections of a deep model is hundreds of small matrices; copied one by one, each takes a launch,
which costs more than the copy.

In: sources [r, n] contiguous, fp32; targets [r, n] of one dtype, each perhaps a part of a larger matrix whose rows are
dense. They keep their memory from one run to the next: a table of their addresses lies on the device.

Shapes: P pairs, r rows, n columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whippet.kernels import triton_jit
from whippet.kernels.triton_jit import tl

Pair = tuple[Tensor, Tensor, float]
"""Source, target, scale."""
BLOCK = 2048
"""Numbers of one program."""
FIELDS = 5


class Copies:
    """Pairs that are copied again and again."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = list(pairs)  # alive as long as their addresses are
        first = self._pairs[0][1]
        for source, target, _ in self._pairs:
            assert source.dtype == torch.float32 and source.is_contiguous(), (source.dtype, source.stride())
            assert target.dtype == first.dtype and target.stride(1) == 1 and target.shape == source.shape
        self._most = max(source.numel() for source, _, _ in self._pairs)
        self._table_PF = torch.tensor(
            [(s.data_ptr(), t.data_ptr(), s.numel(), s.shape[1], t.stride(0)) for s, t, _ in self._pairs],
            dtype=torch.int64,
            device=first.device,
        )
        self._scales_P = torch.tensor([scale for *_, scale in self._pairs], dtype=torch.float32, device=first.device)

    @torch.no_grad()
    def run(self) -> None:
        """Copy all of them, as the sources are now."""
        if not triton_jit.usable(self._table_PF):
            self.run_torch()
            return
        grid = (-(-self._most // BLOCK), len(self._pairs))
        _copy_kernel[grid](self._table_PF, self._scales_P, self._pairs[0][1], FIELDS=FIELDS, BLOCK=BLOCK)

    @torch.no_grad()
    def run_torch(self) -> None:
        """The definition."""
        for source, target, scale in self._pairs:
            torch.mul(source, scale, out=target)


@triton_jit.jit
def _copy_kernel(table_ptr, scales_ptr, like_ptr, FIELDS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    pair = tl.program_id(1)
    entry_ptr = table_ptr + pair * FIELDS
    size = tl.load(entry_ptr + 2)
    numbers = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = numbers < size
    width = tl.load(entry_ptr + 3)
    source_ptr = tl.load(entry_ptr).to(tl.pointer_type(tl.float32))
    target_ptr = tl.load(entry_ptr + 1).to(like_ptr.dtype)
    values = tl.load(source_ptr + numbers, mask=exists, other=0.0) * tl.load(scales_ptr + pair)
    places = numbers // width * tl.load(entry_ptr + 4) + numbers % width
    tl.store(target_ptr + places, values.to(like_ptr.dtype.element_ty), mask=exists)
