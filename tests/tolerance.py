"""The one tolerance of all numeric tests: no test file holds a number of its own.

The error of an op against a reference in double precision may be at most twice the error that plain torch makes in the
op's dtype on the same inputs. Where plain torch happens to make none, one unit in the last place of the largest value
is allowed, since no result in that dtype can be asked to be finer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FACTOR = 2.0


def assert_accurate(actual: Tensor, plain: Tensor, reference: Tensor, what: str = "result") -> None:
    """``actual`` and ``plain`` are results in one dtype, ``reference`` the same in a finer one."""
    assert actual.shape == reference.shape, f"{what}: shape {list(actual.shape)}, wanted {list(reference.shape)}"
    assert actual.dtype == plain.dtype, f"{what}: dtype {actual.dtype}, wanted {plain.dtype}"
    assert bool(actual.isfinite().all()), f"{what}: holds NaN or infinity"
    if not actual.numel():
        return
    exact = reference.double()
    error = (actual.double() - exact).abs().max()
    finest = torch.finfo(actual.dtype).eps * exact.abs().max()
    allowed = torch.maximum(FACTOR * (plain.double() - exact).abs().max(), finest)
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def check_op(
    op: Callable[..., Tensor | Sequence[Tensor]],
    plain: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor],
) -> None:
    """Hold ``op`` and all its gradients to the tolerance.

    ``plain`` is the same computation in torch, run once in the inputs' dtypes and once in double precision. Inputs that
    require grad get their gradients compared, with one random upstream gradient for all three.
    """
    generator = torch.Generator().manual_seed(7)
    upstream: list[Tensor] = []
    results = []
    for function, double in ((op, False), (plain, False), (plain, True)):
        leaves = [_leaf(x, double) for x in inputs]
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if not upstream:
            upstream = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        pairs = [(y, g) for y, g in zip(outputs, upstream, strict=True) if y.requires_grad]
        torch.autograd.backward([y for y, _ in pairs], [g.to(y.dtype) for y, g in pairs])
        results.append([*(y.detach() for y in outputs), *(leaf.grad for leaf in trained)])
    for place, (actual, same, exact) in enumerate(zip(*results, strict=True)):
        number = place - len(upstream)
        what = f"output {place}" if number < 0 else f"gradient of trained input {number}"
        assert actual is not None, f"{what}: missing"
        assert same is not None and exact is not None
        assert_accurate(actual, same, exact, what)


def _leaf(x: Tensor, double: bool) -> Tensor:
    """A leaf with the values and strides of ``x``, in double precision if asked for and if it is a float."""
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x.detach())
    if double and copy.is_floating_point():
        copy = copy.double()
    return copy.requires_grad_(x.requires_grad)
