"""One matrix of the decoder: one or several of the checkpoint's projections fused by rows, with optional adapters.

In: activations ``[T, K]`` in the compute dtype. Out: ``[T, N]`` in the same dtype.
The weight is dense (a parameter; an fp32 master where it is trained), or NF4 or FP8 (frozen). Casting to the compute
dtype happens here, where the weight is used. T: tokens. K: inputs. N: outputs of all parts. n: outputs of one. r: rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whippet.kernels import dense_rows, fp8, gated_mlp, nf4_fp8, nf4_rows, triton_jit
from whippet.kernels.copies import Pair
from whippet.kernels.fp8 import FP8Tensor, Handover
from whippet.kernels.frozen_linear import Weight, dense, frozen_linear, room_wanted
from whippet.kernels.gated_linear import gated_linear
from whippet.kernels.gated_mlp import Activation
from whippet.kernels.int8 import Int8Tensor
from whippet.kernels.lora_factors import LoraPart, Stacked
from whippet.kernels.nf4 import NF4Tensor
from whippet.model.remake import remade
from whippet.model.shelf import Choice, Shelf, empty_shelf


class Adapter(nn.Module):
    """LoRA factors of one part (Hu et al. 2021, https://arxiv.org/abs/2106.09685): adds ``scale * x @ A.T @ B.T``."""

    def __init__(self, a_rK: Tensor, b_nr: Tensor, *, scale: float, dropout: float) -> None:
        super().__init__()
        self.a = nn.Parameter(a_rK)
        self.b = nn.Parameter(b_nr)
        self.scale = scale
        self.dropout = dropout


class Projection(nn.Module):
    """``x @ W.T + bias``, plus the adapters of its parts.

    ``parts`` maps each part's name in the checkpoint (``q_proj``) to its rows of the fused matrix.
    """

    def __init__(
        self, rows: Mapping[str, int], in_size: int, *, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.parts: dict[str, slice] = {}
        start = 0
        for name, count in rows.items():
            self.parts[name] = slice(start, start + count)
            start += count
        self.in_size, self.out_size = in_size, start
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(start, in_size, device=device, dtype=dtype))
        self.quantised: NF4Tensor | Int8Tensor | FP8Tensor | None = None
        self.bias: nn.Parameter | None = nn.Parameter(torch.empty(start, device=device, dtype=dtype)) if bias else None
        self.adapters = nn.ModuleDict()
        self.adapters_enabled = True
        self._stacked: Stacked | None = None
        self.choice = Choice()
        """That of the decoder, once it is part of one."""
        self.shelf: Shelf | None = None

    @property
    def device(self) -> torch.device:
        return self.held.device

    @property
    def nf4(self) -> NF4Tensor | None:
        return self.quantised if isinstance(self.quantised, NF4Tensor) else None

    @property
    def fp8(self) -> FP8Tensor | None:
        return self.quantised if isinstance(self.quantised, FP8Tensor) else None

    @property
    def held(self) -> Weight:
        """The weight as it is held."""
        return self.dense if self.quantised is None else self.quantised

    @property
    def dense(self) -> nn.Parameter:
        """The weight of a projection that is not quantised."""
        assert self.weight is not None
        return self.weight

    def set_quantised(self, weight: NF4Tensor | Int8Tensor | FP8Tensor) -> None:
        """Hold ``weight`` in place of a dense one."""
        assert tuple(weight.shape) == (self.out_size, self.in_size), weight.shape
        self.weight, self.quantised = None, weight

    def multiply_in_fp8(self, *, name: str) -> None:
        """From now on, products of an NF4 weight with bf16 inputs are computed in FP8. ModelError, naming ``name``, if
        it has numbers that FP8 has not."""
        if self.nf4 is not None:
            self.quantised = nf4_fp8.with_rows(self.nf4, name=name)

    def shelve(self, a_RK: Tensor, b_NR: Tensor, number: int, dtype: torch.dtype) -> None:
        """Put an adapter's factors beside this matrix, for tokens that choose ``number``. What lay over it is gone."""
        if self.shelf is None:
            self.shelf = empty_shelf(self.choice, self.in_size, self.out_size, dtype, self.device)
        self.shelf = self.shelf.extended(a_RK, b_NR, number)
        self.adapters, self._stacked = nn.ModuleDict(), None

    def weight_fp32(self) -> Tensor:
        """The base weight, dequantised if need be, fp32 ``[N, K]``; detached."""
        return dense(self.held, torch.float32).detach()

    def adapter_items(self) -> list[tuple[str, Adapter]]:
        """Each adapted part with its factors, in the order of the rows."""
        found = ((name, self.adapters[name]) for name in self.parts if name in self.adapters)
        return [(name, adapter) for name, adapter in found if isinstance(adapter, Adapter)]

    def room_for(self, dtype: torch.dtype) -> int:
        """Unused numbers behind each row of an input of ``dtype`` that are of use here."""
        parts = [adapter for _, adapter in self.adapter_items()] if self.adapters_enabled else []
        if self.nf4 is None or not parts or (self.training and parts[0].dropout > 0):
            return 0
        return room_wanted(self.nf4, sum(len(part.a) for part in parts), dtype)

    def rows(self, x_TK: Tensor) -> FP8Tensor | None:
        """Memory for an input like ``x_TK`` in FP8, if who makes that input can spare this matrix a pass over it."""
        wanted = fp8.wanted(self.quantised) and fp8.applies(x_TK) and fp8.rows_by_kernels(x_TK)
        return fp8.empty_rows(x_TK, self.in_size) if wanted else None

    def handover(self, x_TK: Tensor, reader: Projection) -> Handover | None:
        """What goes between this matrix and ``reader.gated``, which reads its output, if this can use it: back the
        gradient in FP8; and forth what adapters add, if ``reader`` will add it."""
        if not fp8.wanted(self.quantised) or not fp8.applies(x_TK):
            return None
        return Handover(self.quantised, defers=reader.gates_in_one(x_TK))

    def forward(
        self,
        x_TK: Tensor,
        *,
        product: bool = True,
        room: int = 0,
        rows: FP8Tensor | None = None,
        handover: Handover | None = None,
    ) -> Tensor:
        """Without ``product`` the values over a frozen weight are left out: the result serves its graph alone. ``room``
        is what there is behind each row of ``x_TK``."""
        y_TN = self._product(x_TK, product, room, rows, handover)
        added_TN = None if self.shelf is None else self.shelf.added(x_TK)
        return y_TN if added_TN is None else y_TN + added_TN

    def _product(
        self, x_TK: Tensor, product: bool, room: int, rows: FP8Tensor | None, handover: Handover | None
    ) -> Tensor:
        few_TN = self._of_few(x_TK)
        if few_TN is not None:
            return few_TN
        if self.quantised is not None:
            return self._frozen(x_TK, self.quantised, product, room > 0, rows, handover)
        if self.dense.requires_grad:
            bias_N = None if self.bias is None else self.bias.to(x_TK.dtype)
            return F.linear(x_TK, self.dense.to(x_TK.dtype), bias_N)
        return self._frozen(x_TK, self.dense, product)

    def _of_few(self, x_TK: Tensor) -> Tensor | None:
        """The product by kernels that are made for a few rows, where there are such and tokens are answered."""
        if torch.is_grad_enabled() or not self.choice.made:
            return None
        if self.nf4 is not None and nf4_rows.applies(x_TK, self.nf4):
            y_TN = nf4_rows.nf4_rows(x_TK, self.nf4)
        elif self.weight is not None and dense_rows.applies(x_TK, self.weight):
            y_TN = dense_rows.dense_rows(x_TK, self.weight)
        else:
            return None
        if self.bias is not None:
            y_TN += self.bias.to(y_TN.dtype)
        parts = self._lora_parts(None)
        if parts:
            stacked = self._renewed(parts, x_TK.dtype)
            y_TN.addmm_(x_TK @ stacked.a_RK.T, stacked.b_NR.T)
        return y_TN

    def _serves_few(self, x_TK: Tensor) -> bool:
        """Whether ``_of_few`` may apply to what is like ``x_TK``."""
        return not torch.is_grad_enabled() and self.choice.made and len(x_TK) <= dense_rows.MOST_ROWS

    def _frozen(
        self,
        x_TK: Tensor,
        weight: Weight,
        product: bool,
        room: bool = False,
        rows: FP8Tensor | None = None,
        handover: Handover | None = None,
    ) -> Tensor:
        parts = self._lora_parts(x_TK)
        if not parts or parts[0].x_dropped is not None:
            return frozen_linear(x_TK, weight, self.bias, parts, product=product, rows=rows, handover=handover)
        stacked = self._renewed(parts, x_TK.dtype)
        return frozen_linear(
            x_TK, weight, self.bias, parts, stacked, product=product, room=room, rows=rows, handover=handover
        )

    def gates_in_one(self, x_TK: Tensor) -> bool:
        """Whether ``gated`` is one op, where activations are like ``x_TK``."""
        adapters = [adapter for _, adapter in self.adapter_items()] if self.adapters_enabled else []
        dropping = self.training and any(adapter.dropout > 0 for adapter in adapters)
        return bool(adapters) and not dropping and triton_jit.usable(x_TK)

    def gated(
        self,
        gate_up_TF: Tensor,
        *,
        product: bool = True,
        handover: Handover | None = None,
        activation: Activation = "silu",
    ) -> Tensor:
        """``self(gated_mlp.gated(gate_up_TF))``, as one op where kernels run and the weight is frozen. ``gate_up_TF``
        is overwritten in the backward pass. ``handover``: of the matrix that gave it."""
        if self._serves_few(gate_up_TF) or not self.gates_in_one(gate_up_TF):
            gated_TK = gated_mlp.gated(gate_up_TF, activation)
            with remade(gated_TK, partial(gated_mlp.gated, gate_up_TF.detach(), activation)):
                return self(gated_TK, product=product)
        parts = self._lora_parts(gate_up_TF)
        stacked = self._renewed(parts, gate_up_TF.dtype)
        return gated_linear(
            gate_up_TF,
            self.held,
            self.bias,
            parts,
            stacked,
            product=product,
            handover=handover,
            activation=activation,
        )

    def _renewed(self, parts: Sequence[LoraPart], dtype: torch.dtype) -> Stacked:
        """The parts' factors as they are now, stacked."""
        if self._stacked is None or not self._stacked.fits(parts, dtype):
            self._stacked = Stacked(parts, self.out_size, dtype)
        return self._stacked.renewed(parts)

    def copied_factors(self) -> list[Pair]:
        """The factors, and where products read copies of them; nothing if none have been made yet."""
        return [] if self._stacked is None else self._stacked.pairs(self._lora_parts(None))

    @property
    def copies(self) -> Stacked | None:
        """Where those copies lie."""
        return self._stacked

    def mark_copied(self) -> None:
        """What ``copied_factors`` tells has been copied as it is now."""
        if self._stacked is not None:
            self._stacked.mark()

    def _lora_parts(self, x_TK: Tensor | None) -> list[LoraPart]:
        """The parts for an input; None: for one that is not dropped out."""
        if not self.adapters_enabled:
            return []
        parts = []
        for name, adapter in self.adapter_items():
            dropping = x_TK is not None and adapter.dropout > 0 and self.training
            dropped = F.dropout(x_TK, adapter.dropout) if dropping and x_TK is not None else None
            parts.append(LoraPart(adapter.a, adapter.b, self.parts[name], adapter.scale, dropped))
        return parts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._stacked = None
        if self.quantised is not None:
            self.quantised = self.quantised.to(fn(self.quantised.codes.view(torch.uint8)).device)
        return self
