"""What was not finite: the first tensor of a step that held NaN or infinity, by a name that a person can look up.

Comes in: the decoder and the micro-batch that went wrong, or its gradients. Goes out: a place such as
``output of layers.3.down``; and the batch's rows, for ``bad-steps.jsonl``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from whippet.chat.tokenizer import Tokenizer
from whippet.data.batches import IGNORED, Batch
from whippet.lora import adapter_parameters
from whippet.model.decoder import Decoder


def bad_gradient(parameters: Mapping[str, nn.Parameter]) -> str | None:
    """The first parameter whose gradient is not finite."""
    for name, parameter in parameters.items():
        if parameter.grad is not None and not is_finite(parameter.grad):
            return f"gradient of {name}"
    return None


@torch.no_grad()
def bad_output(decoder: Decoder, batch: Batch) -> str:
    """The first weight that is not finite, or the first module whose output is not, or else the loss itself."""
    # A factor is called here as it is in checkpoints and gradients, not by its place in the modules.
    factors = {id(factor): name for name, factor in adapter_parameters(decoder).items()}
    for name, parameter in decoder.named_parameters():
        if parameter.is_floating_point() and not is_finite(parameter):
            return f"weight {factors.get(id(parameter), name)}"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not is_finite(output):
                found.append(f"output of {name}")

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in decoder.named_modules() if name]
    try:
        on_device = batch.to(decoder.device)
        hidden_TH = decoder(on_device.ids, on_device.positions, on_device.cu_seqlens, batch.max_length)
    finally:
        for hook in hooks:
            hook.remove()
    if not found and not is_finite(hidden_TH):
        return "output of the final norm"
    return found[0] if found else "the loss"


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of ``tensor`` is finite."""
    return bool(torch.isfinite(tensor).all())


def rows(batch: Batch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Each document of ``batch``: its text, its ids, how many tokens are trained, and with what weight."""
    borders = batch.cu_seqlens.tolist()
    shown = []
    for start, end in pairwise(borders):
        ids = batch.ids[start:end].tolist()
        shown.append(
            {
                "text": tokenizer.decode(ids),
                "ids": ids,
                "trained": int((batch.labels[start:end] != IGNORED).sum()),
                "weight_sum": float(batch.weights[start:end].sum()),
            }
        )
    return shown
