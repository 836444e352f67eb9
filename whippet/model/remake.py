"""Keep a cheap tensor out of the memory between forward and backward: make it again when the backward pass asks.

A projection wants its input for the gradient of its adapter. That input is a norm's or an activation's output, which
one cheap pass computes from a tensor that is kept anyway. Within ``remade(tensor, make)`` autograd saves ``make`` in
place of ``tensor``; everything else is saved as usual. Values are the same bits, since the same function of the same
bits runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Make = Callable[[], Tensor]


class Mark:
    """Knows ``tensor`` again among those that are saved, by its address: it must live meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        self._address, self._shape = tensor.data_ptr(), tensor.shape

    def is_on(self, saved: Tensor) -> bool:
        """Whether ``saved`` is the tensor."""
        return saved.data_ptr() == self._address and saved.shape == self._shape


def remade(tensor: Tensor, make: Make) -> AbstractContextManager[object]:
    """While this is entered, ``tensor`` is not saved for the backward pass, which calls ``make`` instead.

    ``make`` runs without gradients, and must hold only tensors that are kept for another reason, detached (with their
    graph they would keep it alive). ``tensor`` must live until the context is left.
    """
    if not torch.is_grad_enabled():
        return nullcontext()
    mark = Mark(tensor)

    def pack(saved: Tensor) -> Tensor | Make:
        return make if mark.is_on(saved) else saved

    def unpack(packed: Tensor | Make) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    return saved_tensors_hooks(pack, unpack)
