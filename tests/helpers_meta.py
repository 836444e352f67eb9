"""Random checkpoints in Meta's original layout, cut for as many ranks of model parallelism as are wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whippet.weights.meta_params import inner_size

Weights = dict[str, Tensor]
PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 32,
    "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True,
}  # fmt: skip


def random_weights(params: dict[str, Any]) -> Weights:
    generator = torch.Generator().manual_seed(1)
    dim, head = params["dim"], params["dim"] // params["n_heads"]
    inner = inner_size(dim, params["multiple_of"], params["ffn_dim_multiplier"])
    keys = params["n_kv_heads"] * head

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1)).bfloat16()

    weights = {"tok_embeddings.weight": drawn(96, dim), "norm.weight": drawn(dim), "output.weight": drawn(96, dim)}
    for layer in range(params["n_layers"]):
        for name, rows, columns in (
            ("attention.wq", dim, dim), ("attention.wk", keys, dim), ("attention.wv", keys, dim),
            ("attention.wo", dim, dim), ("feed_forward.w1", inner, dim), ("feed_forward.w2", dim, inner),
            ("feed_forward.w3", inner, dim),
        ):  # fmt: skip
            weights[f"layers.{layer}.{name}.weight"] = drawn(rows, columns)
        for name in ("attention_norm", "ffn_norm"):
            weights[f"layers.{layer}.{name}.weight"] = drawn(dim)
    return weights


def cut(weights: Weights, ranks: int, *, columns: bool, kv_heads: int) -> list[Weights]:
    """What each rank of model parallelism holds."""
    shards: list[Weights] = [{} for _ in range(ranks)]
    for name, weight in weights.items():
        narrowing = ".wo." in name or ".w2." in name or (columns and name.startswith("tok"))
        whole = weight
        if (".wk." in name or ".wv." in name) and ranks > kv_heads:
            whole = weight.unflatten(0, (kv_heads, 1, -1)).expand(-1, ranks // kv_heads, -1, -1).flatten(0, 2)
        pieces = [whole] * ranks if weight.ndim == 1 else whole.chunk(ranks, int(narrowing))
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece.clone()
    return shards


def write(folder: Path, params: dict[str, Any], shards: list[Weights]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02d}.pth")
    return folder
