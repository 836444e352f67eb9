"""Several adapters beside one decoder, of which each token of a batch may want another.

    y_t += Σ over ranks r that belong to the adapter of t of (x_t · A_r) B_r      (https://arxiv.org/abs/2106.09685)

All adapters' factors of a matrix lie side by side, as if they were one adapter of all their ranks together; what x · A
has in the ranks of others is zeroed before it meets B. That is two products however many adapters a batch wants, and
nothing is gathered or sorted. It serves inference, and has no gradient.

T: tokens. K: inputs. N: outputs. R: ranks of all adapters together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Choice:
    """Which adapter each token of the current pass wants: int32 [T], 0 for none; None where no tokens are answered."""

    adapter_T: Tensor | None = None

    @property
    def made(self) -> bool:
        """Whether a pass that answers is under way: a pass that learns may be without gradients too."""
        return self.adapter_T is not None


class Shelf:
    """The factors of all adapters for one matrix. ``choice`` is shared by all matrices of a decoder."""

    def __init__(self, choice: Choice, a_RK: Tensor, b_NR: Tensor, owner_R: Tensor) -> None:
        self.choice, self.a_RK, self.b_NR, self.owner_R = choice, a_RK, b_NR, owner_R

    def extended(self, a_RK: Tensor, b_NR: Tensor, number: int) -> Shelf:
        """With the factors of adapter ``number``; its scale is in ``b_NR``."""
        owner_R = torch.full((len(a_RK),), number, dtype=torch.int32, device=a_RK.device)
        return Shelf(
            self.choice,
            torch.cat([self.a_RK, a_RK.to(self.a_RK.dtype)]),
            torch.cat([self.b_NR, b_NR.to(self.b_NR.dtype)], 1),
            torch.cat([self.owner_R, owner_R]),
        )

    def added(self, x_TK: Tensor) -> Tensor | None:
        """What the chosen adapters add to y, [T, N]; None where none is chosen."""
        if self.choice.adapter_T is None or not len(self.owner_R):
            return None
        u_TR = (x_TK @ self.a_RK.T) * (self.owner_R == self.choice.adapter_T[:, None])
        return u_TR @ self.b_NR.T


def empty_shelf(choice: Choice, in_size: int, out_size: int, dtype: torch.dtype, device: torch.device) -> Shelf:
    """No adapter yet."""
    owner_R = torch.empty(0, dtype=torch.int32, device=device)
    a_RK, b_NR = (
        torch.empty(0, in_size, dtype=dtype, device=device),
        torch.empty(out_size, 0, dtype=dtype, device=device),
    )
    return Shelf(choice, a_RK, b_NR, owner_R)
