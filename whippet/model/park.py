"""What recomputed layers keep, parked in the host's memory between the forward and the backward pass.

Comes in: parts, in the order of the forward pass (a layer's input; or what its attention half keeps, then the residual
sum after it). Goes out: the same numbers in the opposite order, which is the backward pass'. On a GPU both ways go
through pinned memory on a stream of their own, beside the layers' work: the copy of one part ends while the next are
computed, and a part is fetched while the one that was put after it is in use. So of all parts at most two are leaving,
one is in use, and one is coming.

All of it may be recorded in a CUDA graph. The host's memory is a stack of slabs that grows and is never given back or
moved, since a graph copies to and from their addresses; they should have grown before, in a pass as it is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from whippet.model.pinned import Pinned
from whippet.model.remake import Mark

LEAVING = 2
"""Parts whose copies may lie behind the work. With one, work would wait for the copies of attention's part, which take
about as long as the MLP that runs beside them."""
LEAST_SLAB, MOST_SLAB = 2**21, 2**28
"""Bytes. Slabs are powers of two, so that there are few of them, and little more than is used."""
ALIGNMENT = 512
LEAST_BYTES = 2**16
"""What is smaller stays on the device."""


class Parking:
    """Places for the parts of one forward pass."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device = device
        self._slabs: list[Tensor] = []
        self._pinned: list[Pinned] = []
        """Who owns the slabs of a GPU."""
        self._used = 0
        self._parts: list[list[list[Tensor]]] = []
        """Of each part the pieces of slabs in which each of its tensors lies."""
        self._leaving: deque[tuple[list[Tensor], torch.cuda.Event]] = deque()
        self._coming: dict[int, tuple[list[Tensor], torch.cuda.Event | None]] = {}
        self.pass_number = 0

    def begin(self) -> None:
        """A new forward pass: places are free again. What one that did not end has left is let go."""
        if self._stream is not None and (self._leaving or self._coming) and not _recording():
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._leaving.clear()
        self._coming.clear()
        self._parts.clear()
        self._used = 0
        self.pass_number += 1

    def drop(self) -> None:
        """End a pass that failed: nothing of it stays on the device, and its copies are waited for."""
        if self._stream is not None and self._parts:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._leaving.clear()
        self._coming.clear()
        self._parts.clear()

    @property
    def host_bytes(self) -> int:
        """Pinned so far."""
        return sum(len(slab) for slab in self._slabs)

    def put(self, tensors: Sequence[Tensor]) -> int:
        """Take the memory of ``tensors``, which must not be written to afterwards. Returns the part's number."""
        parts = [_bytes_of(tensor) for tensor in tensors]
        places = [self._place(len(part)) for part in parts]
        self._parts.append(places)
        if self._stream is None:
            _copy_each(parts, places, out=True)
        elif parts:
            here = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                _copy_each(parts, places, out=True)
            self._leaving.append((parts, self._stream.record_event()))
            self._let_go(here, LEAVING)
        return len(self._parts) - 1

    def get(self, number: int) -> list[Tensor]:
        """The bytes of part ``number``, on the device; the part before begins to come."""
        if number not in self._coming:
            self._fetch(number)
        tensors, arrived = self._coming.pop(number)
        if self._stream is not None:
            here = torch.cuda.current_stream(self._device)
            self._let_go(here, 0)
            if arrived is not None:
                here.wait_event(arrived)
        if number and number - 1 not in self._coming:
            self._fetch(number - 1)
        return tensors

    def _fetch(self, number: int) -> None:
        places = self._parts[number]
        # Memory of the stream that uses it, so that it is given back in that stream's order.
        sizes = [sum(map(len, pieces)) for pieces in places]
        tensors = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes]
        arrived = None
        if self._stream is None:
            _copy_each(tensors, places, out=False)
        elif tensors:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                _copy_each(tensors, places, out=False)
            arrived = self._stream.record_event()
        self._coming[number] = tensors, arrived

    def _let_go(self, here: torch.cuda.Stream, left: int) -> None:
        """All but the last ``left`` parts that are leaving may be freed for ``here``, once their copies have ended."""
        while len(self._leaving) > left:
            _, gone = self._leaving.popleft()
            here.wait_event(gone)

    def _place(self, size: int) -> list[Tensor]:
        """``size`` bytes on top of the stack, in as many pieces as there are slabs."""
        pieces = []
        while size:
            slab, start = self._top(size)
            piece = slab[start : start + size]
            pieces.append(piece)
            size -= len(piece)
            self._used += len(piece)
        self._used = -(-self._used // ALIGNMENT) * ALIGNMENT
        return pieces

    def _top(self, size: int) -> tuple[Tensor, int]:
        """The slab in which the stack ends, and where in it; a new one if all are full."""
        start = self._used
        for slab in self._slabs:
            if start < len(slab):
                return slab, start
            start -= len(slab)
        wanted = 1 << (max(size, self.host_bytes, LEAST_SLAB) - 1).bit_length()
        wanted = min(wanted, MOST_SLAB)
        if self._stream is None:
            slab = torch.empty(wanted, dtype=torch.uint8)
        else:
            self._pinned.append(Pinned(wanted))
            slab = self._pinned[-1].bytes
        self._slabs.append(slab)
        return slab, 0


@dataclass(frozen=True)
class Parked:
    """A tensor that lies in a ``Bay``."""

    bay: Bay
    place: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        """It, on the device."""
        whole = self.bay.bytes_of(self.place).view(self.dtype)
        return whole.as_strided(self.size, self.stride, self.offset)


Packed = Tensor | Parked


class Bay:
    """One part, gathered from what autograd saves while ``hooks`` are entered: tensors of one memory go there once."""

    def __init__(self, parking: Parking) -> None:
        self._parking, self._pass = parking, parking.pass_number
        self._number: int | None = None
        self._going: dict[int, Tensor] = {}
        self._source: Tensor | None = None
        self._there: list[Tensor] | None = None
        self._versions: list[int] = []

    def hooks(self, *, only_known: bool = False) -> saved_tensors_hooks:
        """While this is entered, what is saved is parked, save what is small; ``only_known``: only what shares memory
        with what is parked already."""

        def pack(saved: Tensor) -> Packed:
            return self._pack(saved, only_known)

        return saved_tensors_hooks(pack, _unpacked)

    def remade(
        self, tensor: Tensor, source: Tensor, make: Callable[[Tensor], Tensor], *, only_known: bool
    ) -> saved_tensors_hooks:
        """As ``hooks``, but for ``tensor``, which is not kept at all: ``make`` makes it again from ``source``."""
        mark = Mark(tensor)
        self._source = source.detach()  # not in the closure, which autograd holds as long as the graph

        def pack(saved: Tensor) -> Packed | tuple[Callable[[Tensor], Tensor], Packed]:
            if mark.is_on(saved):
                assert self._source is not None
                return make, self._pack(self._source, False)
            return self._pack(saved, only_known)

        def unpack(packed: Packed | tuple[Callable[[Tensor], Tensor], Packed]) -> Tensor:
            return packed[0](_unpacked(packed[1])) if isinstance(packed, tuple) else _unpacked(packed)

        return saved_tensors_hooks(pack, unpack)

    def send(self) -> None:
        """All that goes there has been saved."""
        self._number = self._parking.put(list(self._going.values()))
        self._going.clear()
        self._source = None

    def bytes_of(self, place: int) -> Tensor:
        """The memory of one of the tensors, on the device."""
        assert self._number is not None and self._pass == self._parking.pass_number, "another pass has begun"
        if self._there is None:
            self._there = self._parking.get(self._number)
            self._versions = [tensor._version for tensor in self._there]
        assert self._there[place]._version == self._versions[place], "it was overwritten by its backward pass"
        return self._there[place]

    def _pack(self, saved: Tensor, only_known: bool) -> Packed:
        address = saved.untyped_storage().data_ptr()
        if address not in self._going:
            if only_known or saved.untyped_storage().nbytes() < LEAST_BYTES:
                return saved
            self._going[address] = saved.detach()
        place = list(self._going).index(address)
        return Parked(self, place, saved.dtype, saved.shape, saved.stride(), int(saved.storage_offset()))


def _unpacked(packed: Packed) -> Tensor:
    return packed.tensor() if isinstance(packed, Parked) else packed


def _bytes_of(tensor: Tensor) -> Tensor:
    """All of its memory. No history: it serves copies alone."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _copy_each(tensors: Sequence[Tensor], places: Sequence[Sequence[Tensor]], *, out: bool) -> None:
    """To their places (``out``), or from there."""
    for tensor, pieces in zip(tensors, places, strict=True):
        for part, piece in zip(tensor.split([len(piece) for piece in pieces]), pieces, strict=True):
            target, source = (piece, part) if out else (part, piece)
            target.copy_(source, non_blocking=True)


def _recording() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
