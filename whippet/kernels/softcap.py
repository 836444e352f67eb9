"""A soft cap: numbers are held within ±c, smoothly (Gemma Team 2024, https://arxiv.org/abs/2408.00118).

    y = c · tanh(x / c)        dy/dx = 1 - (y / c)²

Elementwise; ops that have scores or logits in hand apply it to them, so there is no autograd here.
"""

from __future__ import annotations

from torch import Tensor

from whippet.kernels import triton_jit
from whippet.kernels.triton_jit import tl

__all__ = ["capped_", "slope", "tanh"]


def capped_(x: Tensor, cap: float | None) -> Tensor:
    """``x``, capped in place; as it is for None."""
    return x if cap is None else x.div_(cap).tanh_().mul_(cap)


def slope(y: Tensor, cap: float) -> Tensor:
    """dy/dx of ``y`` that was capped."""
    return 1 - (y / cap) ** 2


@triton_jit.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """Of fp32, to its last bits. By exponentials a small x would lose what it differs by from 1: a series serves it,
    whose next term is 2e-9 of it at 0.3."""
    square = x * x
    series = 1 + square * (
        -1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835 - square * (1382 / 155925))))
    )
    shrunk = tl.exp(-2 * tl.abs(x))
    large = (1 - shrunk) / (1 + shrunk)
    return tl.where(tl.abs(x) < 0.3, x * series, tl.where(x < 0, -large, large))
