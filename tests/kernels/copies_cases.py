"""Cases of ``kernels/copies.py``, for the CPU, the interpreter and a GPU."""

from __future__ import annotations

import torch

from whippet.kernels.copies import Copies

SHAPES = [(3, 100), (1, 1), (16, 70), (130, 17), (5, 4096)]


def check_copies(dtype: torch.dtype, device: str) -> None:
    """Targets in a larger matrix full of NaN; nothing beside them is touched; a second run takes the new numbers."""
    draw = torch.Generator().manual_seed(3)
    wholes, pairs = [], []
    for number, (rows, columns) in enumerate(SHAPES):
        source = torch.randn(rows, columns, generator=draw).to(device)
        whole = torch.full((rows + 2, columns + 3), float("nan"), dtype=dtype, device=device)
        wholes.append(whole)
        pairs.append((source, whole[1:-1, 2:-1], 1.0 + number / 3))
    copies = Copies(pairs)
    for _ in range(2):
        copies.run()
        for (source, target, scale), whole in zip(pairs, wholes, strict=True):
            assert torch.equal(target, (source * scale).to(dtype))
            assert int(whole.isnan().sum()) == whole.numel() - target.numel()
            source.mul_(-1.5)
