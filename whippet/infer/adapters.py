"""Adapters beside a model, several at once, for requests to choose from.

Comes in: a decoder, and folders in PEFT's layout by name. Goes out: names in the order of ``Decoder.choosing``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from whippet.errors import UsageError
from whippet.model.decoder import Decoder
from whippet.model.projection import Projection
from whippet.weights.adapter import load_adapter
from whippet.weights.adapter_config import read_config


def load_beside(decoder: Decoder, folders: Mapping[str, Path]) -> list[str]:
    """Put each adapter on the decoder's shelves; the decoder itself answers as before.

    UsageError for one that cannot lie beside others: DoRA and whole modules change the weights that all share. Merge
    such a one (``whippet export --to hf``) and serve the result.
    """
    if any(projection.adapter_items() for _, projection in decoder.projections()):
        raise UsageError("the model has an adapter laid over it already; load it without, and name all as adapters")
    for number, (name, folder) in enumerate(folders.items(), start=1):
        config = read_config(folder)
        kind = "DoRA" if config.dora else "modules_to_save" if config.modules_to_save else ""
        if kind:
            raise UsageError(f"adapter {name} ({folder}) has {kind}, so it cannot be one of several: merge it first")
        load_adapter(decoder, folder)
        for _, projection in decoder.projections():
            _shelve(decoder, projection, number)
    return list(folders)


@torch.no_grad()
def _shelve(decoder: Decoder, projection: Projection, number: int) -> None:
    """Move the factors that lie over ``projection`` to its shelf."""
    parts = projection.adapter_items()
    if not parts:
        return
    ranks = sum(len(adapter.a) for _, adapter in parts)
    b_NR = torch.zeros(projection.out_size, ranks, dtype=torch.float32, device=projection.device)
    first = 0
    for name, adapter in parts:
        last = first + len(adapter.a)
        b_NR[projection.parts[name], first:last] = adapter.scale * adapter.b
        first = last
    a_RK = torch.cat([adapter.a for _, adapter in parts])
    projection.shelve(a_RK, b_NR, number, decoder.compute_dtype)
