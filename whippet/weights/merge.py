"""A decoder as the tensors of an ordinary checkpoint: fused matrices split, quantised ones dequantised, adapters added.

In: a decoder, adapted or not. Out: ``(name, tensor)`` in Hugging Face's names, one fused weight at a time in memory,
for ``weights/hf.py`` to write.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from whippet.lora import merged_weight
from whippet.model.decoder import Decoder
from whippet.model.projection import Projection
from whippet.weights.names import table


@torch.no_grad()
def merged_tensors(decoder: Decoder, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint on the CPU, in ``dtype`` (fp32 keeps the merge exact: it is computed in fp32).

    The base that adapters are added to is the one that they were trained over: a quantised base is dequantised, not
    read from elsewhere. Tied models yield only the embedding.
    """
    for entry in table(decoder.config):
        path, _, name = entry.ours.rpartition(".")
        module = decoder.get_submodule(path)
        fused = merged_weight(module) if isinstance(module, Projection) and name == "weight" else getattr(module, name)
        for part, tensor in entry.split(fused.detach()):
            yield part, tensor.to("cpu", dtype, copy=True)
