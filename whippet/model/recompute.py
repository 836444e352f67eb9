"""Run a layer, or its MLP half, without keeping its activations: the backward pass runs it again, and then backward.

In: the two halves of a layer as functions, and hidden states. Out: what the layer gives. Kept: the layer's input x, or
what its attention half keeps and the residual sum s after it (or their places in the host's memory); and where dropout
draws, the state of the random generators, so that it draws the same masks both times.

In a long context the MLP half goes by tiles, since its inner width is the largest of a layer: so many tokens forward,
or forward again and backward, then the next. Gradients of its factors add up over tiles.
T: tokens. H: hidden. C: tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from whippet.model.park import Parking


class Mlp(Protocol):
    """The second half of a layer."""

    def __call__(self, attended_TH: Tensor, x_TH: Tensor | None, *, last_product: bool = True) -> tuple[Tensor, Tensor]:
        """The sum s of both (of ``attended_TH`` alone without the other), and what the MLP adds to it. Without
        ``last_product`` the values of the second are not computed: its graph alone is what a backward pass needs."""
        ...


@dataclass(frozen=True)
class Layer:
    """A layer, as it is run again."""

    attend: Callable[[Tensor], tuple[Tensor, Tensor]]
    """From x: what attention adds to it, and x itself."""
    mlp: Mlp
    draws: bool
    """Whether random numbers are drawn."""
    tile: int
    """Tokens that go through the MLP half at once; 0 for all."""


def recomputed(layer: Layer, x_TH: Tensor, parking: Parking | None = None) -> Tensor:
    """What ``layer`` gives for ``x_TH``; gradients of ``x_TH`` and of the parameters in it are those of an ordinary
    call. With ``parking`` the input waits there."""
    return _Whole.apply(layer, parking, x_TH, _anchor(x_TH))


def half_recomputed(layer: Layer, attended_TH: Tensor, x_TH: Tensor, parking: Parking | None = None) -> Tensor:
    """The same from what ``layer.attend`` gave, whose graph is kept: only the MLP half runs again, from s."""
    return _Half.apply(layer, parking, attended_TH, x_TH, _anchor(x_TH))


def _anchor(x_TH: Tensor) -> Tensor:
    """The output must ask for a gradient even where the input, a frozen embedding, does not."""
    return torch.empty(0, device=x_TH.device, requires_grad=True)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Layer, parking: Parking | None, x_TH: Tensor, anchor: Tensor) -> Tensor:
        ctx.layer, ctx.random = layer, _random_state(x_TH.device) if layer.draws else None
        ctx.kept = _Kept(parking, x_TH)
        ctx.save_for_backward(*ctx.kept.on_device(x_TH))
        attended_TH, x_TH = layer.attend(x_TH)
        return _forward(layer, attended_TH, x_TH)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        layer: Layer = ctx.layer
        x_TH = ctx.kept.tensor(ctx.saved_tensors).detach().requires_grad_(ctx.needs_input_grad[2])
        with _replayed(ctx.random, x_TH.device):
            with torch.enable_grad():
                attended_TH, same_TH = layer.attend(x_TH)
            if not layer.tile:
                with torch.enable_grad():
                    terms = layer.mlp(attended_TH, same_TH, last_product=False)
                del attended_TH, same_TH
                _backward(terms, [grad_TH, grad_TH])
                return None, None, x_TH.grad, None
            ends = [get_gradient_edge(end) for end in (attended_TH, same_TH) if end.requires_grad]
            # In the place of what attention adds, which nothing asks for any more.
            sum_TH = attended_TH.detach().add_(x_TH.detach())
            del attended_TH, same_TH
            grad_TH = _backward_by_tiles(layer, sum_TH, grad_TH, bool(ends))
        del sum_TH
        if ends:
            torch.autograd.backward(ends, [grad_TH] * len(ends))
        return None, None, x_TH.grad, None


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Layer, parking: Parking | None, attended_TH: Tensor, x_TH: Tensor, anchor: Tensor
    ) -> Tensor:
        ctx.layer, ctx.random = layer, _random_state(x_TH.device) if layer.draws else None
        y_TH, sum_TH = _forward(layer, attended_TH, x_TH)
        ctx.kept = _Kept(parking, sum_TH)
        ctx.save_for_backward(*ctx.kept.on_device(sum_TH))
        return y_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        layer: Layer = ctx.layer
        wanted = ctx.needs_input_grad[2:4]
        sum_TH = ctx.kept.tensor(ctx.saved_tensors).detach()
        with _replayed(ctx.random, sum_TH.device):
            if layer.tile:
                ds_TH: Tensor | None = _backward_by_tiles(layer, sum_TH, grad_TH, any(wanted))
            else:
                sum_TH.requires_grad_(any(wanted))
                with torch.enable_grad():
                    terms = layer.mlp(sum_TH, None, last_product=False)
                _backward(terms, [grad_TH, grad_TH])
                ds_TH = sum_TH.grad
        return None, None, ds_TH if wanted[0] else None, ds_TH if wanted[1] else None, None


class _Kept:
    """A tensor that waits for the backward pass, on the device or in a place of the host."""

    def __init__(self, parking: Parking | None, tensor_TH: Tensor) -> None:
        self._parking, self._shape, self._dtype = parking, tensor_TH.shape, tensor_TH.dtype
        if parking is not None:
            self._pass = parking.pass_number
            # Parked is the whole memory of a tensor.
            whole = tensor_TH.is_contiguous() and tensor_TH.untyped_storage().nbytes() == tensor_TH.nbytes
            self._number = parking.put([tensor_TH if whole else tensor_TH.clone()])

    def on_device(self, tensor_TH: Tensor) -> tuple[Tensor, ...]:
        """What autograd is to save."""
        return (tensor_TH,) if self._parking is None else ()

    def tensor(self, saved: Sequence[Tensor]) -> Tensor:
        if self._parking is None:
            return saved[0]
        assert self._pass == self._parking.pass_number, "another pass has begun"
        return self._parking.get(self._number)[0].view(self._dtype).view(self._shape)


def _forward(layer: Layer, attended_TH: Tensor, x_TH: Tensor) -> tuple[Tensor, Tensor]:
    """The MLP half without a graph: what the layer gives, and s."""
    if not layer.tile:
        sum_TH, added_TH = layer.mlp(attended_TH, x_TH)
        return sum_TH + added_TH, sum_TH
    y_TH, sum_TH = torch.empty_like(x_TH), torch.empty_like(x_TH)
    for rows in _tiles(len(x_TH), layer.tile):
        sum_CH, added_CH = layer.mlp(attended_TH[rows], x_TH[rows])
        sum_TH[rows] = sum_CH
        torch.add(sum_CH, added_CH, out=y_TH[rows])
    return y_TH, sum_TH


def _backward_by_tiles(layer: Layer, sum_TH: Tensor, grad_TH: Tensor, wanted: bool) -> Tensor:
    """The gradient of s, written over that of the layer's output. That is nobody else's: a layer's output goes to the
    next layer alone."""
    if not grad_TH.is_contiguous():
        grad_TH = grad_TH.clone(memory_format=torch.contiguous_format)
    for rows in _tiles(len(sum_TH), layer.tile):
        sum_CH = sum_TH[rows].requires_grad_(wanted)
        with torch.enable_grad():
            terms = layer.mlp(sum_CH, None, last_product=False)
        _backward(terms, [grad_TH[rows], grad_TH[rows]])
        if sum_CH.grad is not None:
            grad_TH[rows] = sum_CH.grad
    return grad_TH


def _tiles(tokens: int, tile: int) -> Iterator[slice]:
    """As few as there must be, of about the same size: a short last one would cost as much as a whole."""
    number = -(-tokens // tile)
    for place in range(number):
        yield slice(tokens * place // number, tokens * (place + 1) // number)


def _backward(terms: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    pairs = [(term, gradient) for term, gradient in zip(terms, gradients, strict=True) if term.requires_grad]
    if pairs:
        torch.autograd.backward([term for term, _ in pairs], [gradient for _, gradient in pairs])


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _replayed(states: list[Tensor] | None, device: torch.device) -> AbstractContextManager[None]:
    """Draw random numbers from ``states`` on; afterwards the generators are where they were."""
    return nullcontext() if states is None else _replayed_from(states, device)


@contextmanager
def _replayed_from(states: list[Tensor], device: torch.device) -> Iterator[None]:
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.set_rng_state(states[0])
        if on_gpu:
            torch.cuda.set_rng_state(states[1], device)
        yield
