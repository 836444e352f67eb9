"""Some rows of a matrix, each at most once.

    y_n = x_rows(n)        dx_t = dy_n where t = rows(n), else 0

Indexing by torch allows rows to be met twice, for which its backward pass sorts them and adds; here it copies.

In: x [T, H]; rows int64 [N], all different. Out: y [N, H]. Kept: rows.

Shapes: T rows of x, N rows taken, H width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def take_rows(x_TH: Tensor, rows_N: Tensor) -> Tensor:
    """Return [N, H], the rows ``rows_N`` of ``x_TH``. No row may be taken twice: its gradient would be one of two."""
    return _TakeRows.apply(x_TH, rows_N)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, rows_N: Tensor) -> Tensor:
        ctx.save_for_backward(rows_N)
        ctx.num_rows = len(x_TH)
        return x_TH.index_select(0, rows_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, None]:
        (rows_N,) = ctx.saved_tensors
        dx_TH = grad_NH.new_zeros(ctx.num_rows, grad_NH.shape[1])
        return dx_TH.index_copy_(0, rows_N, grad_NH), None
