"""A decoder written in Meta's original layout (``meta.py``): ``params.json`` and ``consolidated.NN.pth``.

In: a decoder, adapted or not (adapters are merged in fp32). Out: the files, whose tensors are those that a Meta
checkpoint had from which the decoder was read in that dtype, byte for byte.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from whippet.errors import UsageError
from whippet.model.decoder import Decoder
from whippet.weights.files import write_json, written_aside
from whippet.weights.merge import merged_tensors
from whippet.weights.meta import write_archive
from whippet.weights.meta_names import meta_name, pieces_of
from whippet.weights.meta_params import LONGEST_WORDS, params_of


def write_meta(
    folder: Path, decoder: Decoder, *, dtype: torch.dtype = torch.bfloat16, ranks: int = 1, by_rows: bool | None = None
) -> list[Path]:
    """Write ``decoder`` into ``folder`` (made if absent) for ``ranks`` of model parallelism; returns the archives.

    ``by_rows``: the embedding is cut by rows, as from Llama 3 on, or by columns; None: as its vocabulary's size tells.
    One rank is in memory at a time. Raises UsageError for a model that the layout cannot hold.
    """
    config = decoder.config
    params = params_of(config)
    by_rows = config.vocab_size >= LONGEST_WORDS if by_rows is None else by_rows
    sides = (config.num_heads, config.intermediate_size, config.vocab_size, config.hidden_size)
    kv_heads = config.num_kv_heads
    if ranks < 1 or any(side % ranks for side in sides) or (kv_heads % ranks and ranks % kv_heads):
        raise UsageError(f"{ranks} ranks cannot share heads, rows or columns of this model evenly")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for rank in range(ranks):
        held: dict[str, Tensor] = {}
        for name, tensor in merged_tensors(decoder, dtype):
            piece = list(pieces_of(name, tensor, config, ranks, by_rows=by_rows))[rank]
            held[meta_name(name)] = piece.clone(memory_format=torch.contiguous_format)
            if config.tie_embeddings and name == "model.embed_tokens.weight":
                # Meta's code has no tied matrices: the output is there once more.
                output = list(pieces_of("lm_head.weight", tensor, config, ranks, by_rows=by_rows))[rank]
                held["output.weight"] = output.clone(memory_format=torch.contiguous_format)
        path = folder / f"consolidated.{rank:02d}.pth"
        with written_aside(path) as aside:
            write_archive(aside, held)
        written.append(path)
    write_json(folder / "params.json", params)
    return written
