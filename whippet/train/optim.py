"""The optimiser: what is trained, by how much a step moves it, and its states as plain tensors.

Comes in: a decoder and ``TrainOptions``. Goes out: AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)
over fp32 parameters, by torch (fused) or with 8-bit states by bitsandbytes; a learning rate that is a function of the
step alone; and states by name, for checkpoints.
Weight decay pulls on matrices only: norms and biases are left alone. The factors of an adapter are matrices, so they
decay, as they do in the trainers that people compare with.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from whippet.errors import MissingExtra, ModelError
from whippet.lora import adapter_parameters
from whippet.model.decoder import Decoder
from whippet.options import TrainOptions

Parameters = dict[str, nn.Parameter]


def trained_parameters(decoder: Decoder, method: str) -> Parameters:
    """What ``method`` trains, fp32, by a stable name in a stable order."""
    found = adapter_parameters(decoder) if method == "lora" else dict(decoder.named_parameters())
    assert all(parameter.dtype == torch.float32 for parameter in found.values())
    return found


def make_optimizer(parameters: Parameters, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser of the recipe. Raises MissingExtra if ``adamw8bit`` lacks its package."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((matrices, options.weight_decay), (others, 0.0))
        if group
    ]
    make = partial(torch.optim.AdamW, fused=True)
    if options.optimizer == "adamw8bit":
        make = _bitsandbytes().AdamW8bit
    optimizer = make(groups, lr=0.0, betas=(options.beta1, options.beta2))
    # Both write behind autograd's back, and what is copied of a parameter is renewed by its version (``Stacked``).
    optimizer.register_step_post_hook(lambda *_: increment_version([*parameters.values()]))
    return optimizer


def check_optimizer(options: TrainOptions) -> None:
    """Raise MissingExtra now rather than after a long load."""
    if options.optimizer == "adamw8bit":
        _bitsandbytes()


def learning_rate(step: int, total: int, options: TrainOptions) -> float:
    """The rate of ``step`` (1 … ``total``). It rises through the warm-up so that the step after it has the full rate;
    from there ``linear`` and ``cosine`` fall so that a step after the last would have 0."""
    share = options.warmup
    warmup = min(int(share) if share >= 1 else round(share * total), total - 1)
    if step <= warmup:
        return options.learning_rate * step / (warmup + 1)
    done = (step - 1 - warmup) / (total - warmup)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return options.learning_rate * factor[options.schedule]


@torch.no_grad()
def gradient_norm(gradients: Sequence[Tensor], weight_sum: float) -> Tensor:
    """The norm of all gradients together, each divided by ``weight_sum``: fp32 scalar, maybe not finite."""
    return torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=False) / weight_sum


@torch.no_grad()
def scale_gradients(
    gradients: Sequence[Tensor], norm: Tensor, weight_sum: float, clip: float, is_fine: Tensor | None = None
) -> None:
    """Divide summed gradients by ``weight_sum`` and clip them from ``norm`` to ``clip`` (0: do not), in place. Where
    ``is_fine`` (a bool scalar on their device) is false they stay as they are, so that what is wrong can be found.

    Division comes last, on fp32 sums, so that 16-bit backward passes work on the gradients of single tokens, which do
    not vanish in long steps.
    """
    factor = torch.ones_like(norm)
    if clip:
        factor = torch.clamp(clip / (norm + 1e-6), max=1.0)
    factor = factor / weight_sum
    if is_fine is not None:
        factor = torch.where(is_fine, factor, 1.0)
    torch._foreach_mul_(list(gradients), factor)


def step_if(optimizer: torch.optim.Optimizer, is_fine: Tensor) -> None:
    """``optimizer.step()`` if the bool scalar ``is_fine`` is true. torch's fused kernels look at it themselves, so that
    nobody waits for the device; bitsandbytes' cannot."""
    if isinstance(optimizer, torch.optim.AdamW):
        # What torch.amp's GradScaler sets; states and their count of steps are left alone too.
        optimizer.found_inf = is_fine.logical_not().float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif bool(is_fine):
        optimizer.step()


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """The states of every parameter as ``<parameter>:<state>``; whole numbers become int64 scalars."""
    return {
        f"{name}:{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave. Raises ModelError for a name that belongs to no parameter."""
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(":")
        if name not in parameters:
            raise ModelError(f"the checkpoint's optimiser state {full!r} belongs to no trained parameter")
        parameter = parameters[name]
        # Whole numbers come from bitsandbytes; torch keeps its own count of steps as a float tensor on the CPU or GPU.
        if tensor.dtype == torch.int64:
            optimizer.state[parameter][key] = int(tensor)
        else:
            optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)


@torch.no_grad()
def restore_weights(parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into ``parameters``. Raises ModelError if names or shapes differ."""
    if stray := sorted(set(parameters) ^ set(tensors)):
        raise ModelError(f"the checkpoint and the model disagree on {len(stray)} tensors, the first is {stray[0]!r}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            met, wanted = list(tensors[name].shape), list(parameter.shape)
            raise ModelError(f"the checkpoint's {name} has the shape {met}, wanted {wanted}")
        parameter.copy_(tensors[name])


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes").optim
    except ImportError as error:
        raise MissingExtra("bitsandbytes", "bnb", 'train.optimizer = "adamw8bit"') from error
