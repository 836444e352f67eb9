"""Forward and backward pass of a micro-batch as one launch: recorded once a shape as a CUDA graph, then replayed.

A step of a small model, or of few tokens, is thousands of kernels of a few microseconds, and Python takes ten times as
long to launch one. A recorded graph is launched whole. The first micro-batch of a shape runs as it is written (kernels
are compiled and tuned then), the second is recorded, and from there on it is replayed with other numbers in the same
memory. ``shapes.py`` makes the shapes few.

Gradients. The graph that is recorded first leaves them where the backward pass formed them, and there they stay: every
replay writes over them. All later graphs, and work that is not replayed, add to them; they are zeroed before the first
micro-batch of a step, if that does not write over them.

Comes in: micro-batches. Goes out: their losses; gradients in ``parameter.grad``. Everything here can be left out, and
nothing but time changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from whippet.data.batches import Batch
from whippet.kernels.attention import backend
from whippet.kernels.copies import Copies
from whippet.kernels.int8_tensor import Int8Tensor
from whippet.kernels.lora_factors import Stacked
from whippet.model.decoder import Decoder
from whippet.train.objectives.sft import Loss, Objective
from whippet.train.shapes import Shape, padded, shape_of

T = TypeVar("T")
MOST_GRAPHS = 48
"""Each holds some megabytes of launches on the device; shapes beyond those are not recorded."""
MOST_WORK = 2 * 4096 * 4096**2
"""Tokens times the square of the hidden size, from which on a GPU works longer on a kernel than Python takes to launch
the next: nothing is gained then by recording. 8,192 tokens of an 8B model. One with 4,096 took 252 ms either way."""


class Graph(Protocol):
    """Work that was recorded."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """How work is recorded."""

    def __call__(self, work: Callable[[], T]) -> tuple[Graph, T]:
        """Record what a function does. Its result's tensors hold nothing before the graph is replayed."""
        ...

    def forget(self) -> None:
        """Nothing that was recorded is there any more."""
        ...

    def has_room(self) -> bool:
        """Whether a pass may run as written beside what has been recorded, whose memory it cannot use."""
        ...


@dataclass(frozen=True)
class Key:
    """What a graph is for. ``adds``: to the gradients that there are."""

    shape: Shape
    limits: tuple[int, ...]
    adds: bool


@dataclass(frozen=True)
class Recorded:
    """A graph, with the tensors that it reads and writes."""

    graph: Graph
    batch: Batch
    loss: Loss


class Replays:
    """Recorded work of one decoder. ``record`` None: nothing is recorded, and every micro-batch runs as written."""

    def __init__(
        self,
        decoder: Decoder,
        parameters: Sequence[nn.Parameter],
        record: Recorder | None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._decoder, self._parameters, self._record, self._tell = decoder, list(parameters), record, tell
        self._graphs: dict[Key, Recorded] = {}
        self._met: set[Key] = set()
        self._gradients: list[Tensor] | None = None
        self._projections = [projection for _, projection in decoder.projections()]
        self._copies: Copies | None = None
        self._places: list[Stacked | None] = []
        self._versions = -1
        self._fresh = True
        self._too_large: set[tuple[int, ...]] = set()
        """Limits under which there was not the memory to record."""

    @property
    def hold_memory(self) -> bool:
        """Whether graphs hold memory that ``clear`` would give back."""
        return bool(self._graphs)

    def begin(self) -> None:
        """A new step: gradients so far count no more."""
        self._fresh = True
        if not self._graphs:
            self._gradients = None
        if self._gradients is None:
            for parameter in self._parameters:
                parameter.grad = None

    def clear(self) -> None:
        """Give back all memory, gradients included. What is met again is recorded again, at once."""
        self._forget()
        self.begin()

    def learn(self, objective: Objective, batch: Batch, chunk_rows: int, most_tokens: int) -> Loss:
        """The loss of ``batch``, whose gradient is added to what this step has. ``num_trained`` is of ``batch``."""
        if self._record is None:
            loss = objective(self._decoder, batch, chunk_rows)
            loss.loss_sum.backward()
            return loss
        batch = batch.with_rows()
        assert batch.rows is not None
        num_trained = len(batch.rows)
        self._look_at_places()
        key = None
        if batch.num_tokens * self._decoder.config.hidden_size**2 <= MOST_WORK:
            shape = shape_of(batch, most_tokens)
            batch, key = padded(batch, shape), self._key(shape, chunk_rows)
        batch = _pinned(batch, self._decoder.device)
        if self._fresh and self._gradients is not None and (key is None or key.adds):
            torch._foreach_zero_(self._gradients)
        self._fresh = False
        recorded = None if key is None else self._found(objective, key, batch, chunk_rows)
        if recorded is None:
            self._make_room()
            loss = objective(self._decoder, batch, chunk_rows)
            loss.loss_sum.backward()
            if key is not None:
                self._met.add(replace(key, adds=False))
        else:
            self._renew()
            for name, target in recorded.batch.tensors().items():
                target.copy_(batch.tensors()[name], non_blocking=True)
            recorded.graph.replay()
            loss = recorded.loss
        return Loss(loss.loss_sum.detach().clone(), loss.correct.clone(), num_trained)

    def _found(self, objective: Objective, key: Key, batch: Batch, chunk_rows: int) -> Recorded | None:
        """The graph of ``key``, recorded now if it is time; None if ``batch`` is to run as written."""
        recorded = self._graphs.get(key)
        if recorded is None and self._is_due(key):
            self._renew()  # not within the graph
            try:
                recorded = self._recorded(objective, key, batch, chunk_rows)
            except torch.OutOfMemoryError:
                self._give_up(key)
        return recorded

    def _key(self, shape: Shape, chunk_rows: int) -> Key:
        """What this micro-batch asks for. The graph that writes gradients serves only the first of a step."""
        decoder = self._decoder
        limits = (decoder.recompute, decoder.park, decoder.halves, decoder.tile, decoder.entire, chunk_rows)
        writes = Key(shape, limits, adds=False)
        may_write = self._fresh and (self._gradients is None or writes in self._graphs)
        return writes if may_write else replace(writes, adds=True)

    def _make_room(self) -> None:
        """Before a pass as written: drop recorded work, if there is not enough memory for both. Gradients that a step
        has by now stay."""
        if self._graphs and self._record is not None and not self._record.has_room():
            self._forget()

    def _forget(self) -> None:
        self._graphs.clear()
        if self._record is not None:
            self._record.forget()

    def _is_due(self, key: Key) -> bool:
        """Whether ``key`` was met before, in either form: its kernels are ready then."""
        may = key.limits not in self._too_large and len(self._graphs) < MOST_GRAPHS
        return may and replace(key, adds=False) in self._met

    def _give_up(self, key: Key) -> None:
        """There is not the memory to record: under these limits run as written from now on."""
        self._too_large.add(key.limits)
        self._tell("not enough memory to record a step as a CUDA graph; going on without, which is slower")
        self._forget()
        if not key.adds:
            for parameter in self._parameters:
                parameter.grad = None  # of work that was recorded in part, and never done

    def _recorded(self, objective: Objective, key: Key, batch: Batch, chunk_rows: int) -> Recorded:
        """Record ``key``; its tensors are made here, and hold ``batch``."""
        assert self._record is not None
        there = batch.to(self._decoder.device)

        def work() -> Loss:
            try:
                loss = objective(self._decoder, there, chunk_rows)
                loss.loss_sum.backward()
            except torch.OutOfMemoryError:
                self._decoder.drop_parked()  # a recording ends only with all of its streams joined
                raise
            return Loss(loss.loss_sum.detach(), loss.correct, loss.num_trained)

        graph, loss = self._record(work)
        if self._gradients is None:
            self._gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._graphs[key] = Recorded(graph, there, loss)
        return self._graphs[key]

    def _look_at_places(self) -> None:
        """Graphs read the copies of factors where they lay: drop what reads others."""
        places = [projection.copies for projection in self._projections]
        if len(places) != len(self._places) or any(a is not b for a, b in zip(places, self._places, strict=True)):
            self._places, self._copies, self._versions = places, None, -1
            self._forget()

    def _renew(self) -> None:
        """Bring the copies that projections keep of their factors up to date, if a factor has changed."""
        versions = sum(parameter._version for parameter in self._parameters)
        if versions == self._versions:
            return
        self._versions = versions
        if self._copies is None:
            pairs = [pair for projection in self._projections for pair in projection.copied_factors()]
            self._copies = Copies(pairs) if pairs else None
        if self._copies is not None:
            self._copies.run()
        for projection in self._projections:
            projection.mark_copied()


class CudaRecorder:
    """CUDA graphs that share their memory, since one is replayed at a time. All of a process' memory on the device
    shall stay within ``budget`` bytes."""

    def __init__(self, device: torch.device, budget: int | None) -> None:
        self._device, self._budget = device, budget
        self._pool, self._held = torch.cuda.graph_pool_handle(), 0

    def __call__(self, work: Callable[[], T]) -> tuple[Graph, T]:
        graph, results = torch.cuda.CUDAGraph(), []
        # Other threads (TensorBoard's, a tracker's) may go on as they please.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            before = torch.cuda.memory_reserved(self._device)
            # Told below: the recording has to be ended as any other.
            with contextlib.suppress(torch.OutOfMemoryError):
                results.append(work())
            self._held += torch.cuda.memory_reserved(self._device) - before
        if not results:
            raise torch.OutOfMemoryError("out of memory while recording a CUDA graph")
        return graph, results[0]

    def forget(self) -> None:
        """A pool that no graph uses any more must not be recorded into again, so there is a new one."""
        self._pool, self._held = torch.cuda.graph_pool_handle(), 0
        torch.cuda.empty_cache()

    def has_room(self) -> bool:
        """A pass takes about what the recorded ones hold; it may have what is free, and what torch keeps unused."""
        reserved, allocated = torch.cuda.memory_reserved(self._device), torch.cuda.memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        if self._budget is not None:
            free = min(free, self._budget - reserved)
        return self._held <= free + max(0, reserved - allocated - self._held)


def recorder(decoder: Decoder, *, draws: bool, budget: int | None = None) -> Recorder | None:
    """How work of ``decoder`` is recorded: not at all on a CPU, where random numbers are drawn (dropout), or where
    attention looks at the borders of documents before it is launched, or an 8-bit product at outlying inputs."""
    device, config = decoder.device, decoder.config
    if device.type != "cuda" or draws:
        return None
    if backend(device, decoder.compute_dtype, config.head_dim, config.attention_softcap is not None) == "sdpa":
        return None
    if any(isinstance(projection.quantised, Int8Tensor) for _, projection in decoder.projections()):
        return None
    return CudaRecorder(device, budget)


def _pinned(batch: Batch, device: torch.device) -> Batch:
    """``batch`` where a GPU can fetch it without anybody waiting."""
    if device.type != "cuda":
        return batch
    pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in batch.tensors().items()}
    return replace(batch, **pinned)
