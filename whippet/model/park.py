"""Inputs of recomputed layers, parked in the host's memory between the forward and the backward pass.

Comes in: a layer's input when the forward pass leaves it. Goes out: the same numbers when the backward pass reaches the
layer. On a GPU both ways go through pinned memory on a stream of their own, beside the layers' work: the copy of one
layer ends while the next is computed, and a layer's input is fetched while the layer after it is in its backward pass.
T: tokens. H: hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Parking:
    """Places for the inputs of layers 0 … n. They are filled in that order, and emptied from the last to the first."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device = device
        self._places: dict[int, Tensor] = {}
        self._shape = torch.Size()
        self._leaving: tuple[Tensor, torch.cuda.Event] | None = None
        self._coming: dict[int, tuple[Tensor, torch.cuda.Event | None]] = {}

    def put(self, index: int, x_TH: Tensor) -> None:
        """Take the input of layer ``index``. It must not be written to afterwards."""
        if index == 0:
            self._coming.clear()  # of a pass that did not end
        place_TH = self._place(index, x_TH)
        self._shape = x_TH.shape
        if self._stream is None:
            place_TH.copy_(x_TH)
            return
        here = torch.cuda.current_stream(self._device)
        self._let_go(here)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            place_TH.copy_(x_TH, non_blocking=True)
        self._leaving = x_TH, self._stream.record_event()

    def get(self, index: int) -> Tensor:
        """The input of layer ``index``, on the device; that of the layer before begins to come."""
        if index not in self._coming:
            self._fetch(index)
        x_TH, arrived = self._coming.pop(index)
        if arrived is not None:
            here = torch.cuda.current_stream(self._device)
            self._let_go(here)
            here.wait_event(arrived)
        if index:
            self._fetch(index - 1)
        return x_TH

    def _fetch(self, index: int) -> None:
        place_TH = self._places[index][: self._shape[0]]
        if self._stream is None:
            self._coming[index] = place_TH.clone(), None
            return
        # Memory of the stream that uses it, so that it is given back in that stream's order.
        x_TH = torch.empty(self._shape, dtype=place_TH.dtype, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            x_TH.copy_(place_TH, non_blocking=True)
        self._coming[index] = x_TH, self._stream.record_event()

    def _let_go(self, here: torch.cuda.Stream) -> None:
        """The tensor that left last may be freed for ``here``, once its copy has ended."""
        if self._leaving is not None:
            here.wait_event(self._leaving[1])
            self._leaving = None

    def _place(self, index: int, x_TH: Tensor) -> Tensor:
        """The first rows of a host tensor, which is made anew only for a longer stream."""
        held = self._places.get(index)
        if held is None or len(held) < len(x_TH) or held.dtype != x_TH.dtype or held.shape[1:] != x_TH.shape[1:]:
            held = torch.empty(x_TH.shape, dtype=x_TH.dtype, pin_memory=self._stream is not None)
            self._places[index] = held
        return held[: len(x_TH)]
