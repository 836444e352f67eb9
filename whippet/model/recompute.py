"""Run a layer without keeping its activations: the backward pass runs it again, from its input, and then backward.

In: a function of hidden states, and the hidden states. Out: what the function gives. Kept: the input (or its place in
the host's memory), and the state of the random generators, so that dropout draws the same mask both times.
T: tokens. H: hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whippet.model.park import Parking

Layer = Callable[[Tensor], Tensor]
Again = Callable[[Tensor], Sequence[Tensor]]
Place = tuple[Parking, int]


def recomputed(layer: Layer, again: Again, x_TH: Tensor, place: Place | None = None) -> Tensor:
    """``layer(x_TH)``; gradients of ``x_TH`` and of the parameters in ``layer`` are those of an ordinary call.

    ``again`` is what the backward pass runs: it gives terms whose sum the layer's output is. Their values are not used,
    only their graphs. With a ``place`` the input is parked there.
    """
    # The output must ask for a gradient even where the input, a frozen embedding, does not.
    anchor = torch.empty(0, device=x_TH.device, requires_grad=True)
    return _Recomputed.apply(layer, again, place, x_TH, anchor)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Layer, again: Again, place: Place | None, x_TH: Tensor, anchor: Tensor) -> Tensor:
        ctx.again, ctx.place, ctx.random = again, place, _random_state(x_TH.device)
        if place is None:
            ctx.save_for_backward(x_TH)
        else:
            parking, index = place
            parking.put(index, x_TH)
        return layer(x_TH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        (x_TH,) = ctx.saved_tensors if ctx.place is None else (ctx.place[0].get(ctx.place[1]),)
        x_TH = x_TH.detach().requires_grad_(ctx.needs_input_grad[3])
        with torch.enable_grad(), _replayed(ctx.random, x_TH.device):
            terms = [term for term in ctx.again(x_TH) if term.requires_grad]
        torch.autograd.backward(terms, [grad_TH] * len(terms))
        return None, None, None, x_TH.grad, None


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextmanager
def _replayed(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw random numbers from ``states`` on; afterwards the generators are where they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.set_rng_state(states[0])
        if on_gpu:
            torch.cuda.set_rng_state(states[1], device)
        yield
