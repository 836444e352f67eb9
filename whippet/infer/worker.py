"""A thread that answers requests, for callers in other threads: the one that owns a ``Batcher``.

Comes in: requests, and a function for each that is told what happens to it. Goes out: events, called in the worker's
thread, so that function must be quick. Nothing is locked for a token: orders reach the thread through a queue that it
looks at between two steps.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from whippet.errors import UsageError, WhippetError
from whippet.infer.requests import Event, Request

LOG = logging.getLogger(__name__)
OnEvent = Callable[[Event], None]
FAULTS = (
    WhippetError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What a computation can raise: the step's requests end by it, and the thread goes on."""
BROKEN_AFTER = 3
"""So many steps that failed one after the other mean that the next one will fail too."""
ENDED = "the engine was stopped before the reply was complete"


class Full(WhippetError):
    """As many requests wait as may."""


class Closed(WhippetError):
    """No more requests are taken."""


@dataclass(frozen=True)
class Refused(Event):
    """The end of a request that can never be answered, by its own fault: ``error`` says why."""


@dataclass(frozen=True)
class Figures:
    """What a worker did since it began, and what it does now."""

    running: int
    waiting: int
    requests: int
    """Taken, since the beginning."""
    refused: int
    failed: int
    cancelled: int
    prompt_tokens: int
    """Of requests whose first token has come."""
    cached_tokens: int
    """Those of them that were known from before."""
    generated_tokens: int
    steps: int
    cache_used: int
    cache_size: int
    healthy: bool
    """Whether the thread runs and its last steps did not all fail."""


class Engine(Protocol):
    """What a worker needs of a ``Batcher``."""

    def add(self, request: Request) -> int: ...

    def cancel(self, number: int) -> None: ...

    def step(self) -> list[Event]: ...

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def busy(self) -> bool: ...

    @property
    def cache_used(self) -> int: ...

    @property
    def cache_size(self) -> int: ...


@dataclass
class _Job:
    request: Request
    on_event: OnEvent
    ticket: int
    number: int | None = None
    """The batcher's number for it, once it has one."""
    answered: bool = False


class Worker:
    """Answers requests until it is closed. ``max_rows`` run at once; ``max_waiting`` more are taken, then ``Full``."""

    def __init__(self, batcher: Engine, *, max_rows: int, max_waiting: int = 256, name: str = "whippet-worker") -> None:
        if max_waiting < 0:
            raise UsageError(f"max_waiting = {max_waiting}: must be 0 or more")
        self._batcher, self._most = batcher, max_rows + max_waiting
        self._orders: queue.SimpleQueue[tuple[Literal["add", "cancel", "close"], _Job | None]] = queue.SimpleQueue()
        self._open: dict[int, _Job] = {}
        self._jobs: dict[int, _Job] = {}
        self._tickets = itertools.count(1)
        self._submitting = threading.Lock()
        self._deadline: float | None = None
        self._failures = 0
        self._requests = self._refused = self._failed = self._cancelled = 0
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = self._steps = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: OnEvent) -> int:
        """Take a request; return its number, which is that of its events. ``on_event`` is called in the worker's thread
        until an event that is the ``last``. Full if too many requests wait, Closed after ``close``."""
        with self._submitting:
            if self._deadline is not None or not self._thread.is_alive():
                raise Closed("the engine is stopped and takes no more requests")
            if len(self._open) >= self._most:
                raise Full(f"{len(self._open)} requests are being answered or wait, which is as many as may")
            job = _Job(request, on_event, next(self._tickets))
            self._open[job.ticket] = job
            self._requests += 1
            self._orders.put(("add", job))
        return job.ticket

    def cancel(self, number: int) -> None:
        """End a request, from any thread: no event follows but one that is being told. Unknown numbers are ignored."""
        job = self._open.pop(number, None)
        if job is not None:
            self._orders.put(("cancel", job))

    def close(self, timeout: float = 0.0) -> bool:
        """Take no more requests, answer those that were taken for up to ``timeout`` seconds, end the rest with an
        error, and let the thread end. Return whether it ended."""
        with self._submitting:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout
                self._orders.put(("close", None))
        self._thread.join(timeout + 30)
        return not self._thread.is_alive()

    def figures(self) -> Figures:
        """Counts; from any thread, and as of some moment of the last step."""
        running = self._batcher.running
        return Figures(
            running=running,
            waiting=max(len(self._open) - running, 0),
            requests=self._requests,
            refused=self._refused,
            failed=self._failed,
            cancelled=self._cancelled,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
            cache_used=self._batcher.cache_used,
            cache_size=self._batcher.cache_size,
            healthy=self._thread.is_alive() and self._failures < BROKEN_AFTER,
        )

    def _run(self) -> None:
        try:
            while self._obey():
                if self._batcher.busy:
                    self._step()
        finally:
            with self._submitting:
                self._deadline = self._deadline or time.monotonic()
            for job in list(self._open.values()):
                self._end(job, ENDED)

    def _obey(self) -> bool:
        """Take the orders that have come, waiting for one if there is nothing to do; whether to go on."""
        while True:
            try:
                order, job = self._orders.get(block=not self._batcher.busy and self._deadline is None)
            except queue.Empty:
                break
            if order == "add" and job is not None:
                self._add(job)
            elif order == "cancel" and job is not None:
                self._cancelled += 1
                self._leave(job)
        if self._deadline is None:
            return True
        return self._batcher.busy and time.monotonic() < self._deadline

    def _add(self, job: _Job) -> None:
        if job.ticket not in self._open:
            return  # cancelled before it was begun
        try:
            job.number = self._batcher.add(job.request)
        except UsageError as error:
            self._refused += 1
            self._tell(job, Refused(job.ticket, error=str(error)))
        except FAULTS as fault:
            self._failed += 1
            self._end(job, _said(fault))
        else:
            self._jobs[job.number] = job

    def _step(self) -> None:
        self._steps += 1
        try:
            events = self._batcher.step()
        except FAULTS as fault:
            # Which of the requests was to blame is not known, nor how far the others came.
            LOG.error("a step failed; its %d requests end with it", len(self._jobs), exc_info=fault)
            self._failures += 1
            for job in list(self._jobs.values()):
                self._failed += 1
                self._leave(job)
                self._end(job, _said(fault))
            return
        self._failures = 0
        for event in events:
            if event.number in self._jobs:
                self._hand_on(self._jobs[event.number], event)

    def _hand_on(self, job: _Job, event: Event) -> None:
        if event.drawn is not None:
            self._generated_tokens += 1
        if not job.answered and event.error is None:
            job.answered = True
            self._prompt_tokens += len(job.request.prompt)
            self._cached_tokens += event.cached
        if event.last:
            del self._jobs[event.number]
            self._failed += event.error is not None
        self._tell(job, Event(job.ticket, event.drawn, event.finish, event.stop_id, event.error, cached=event.cached))

    def _end(self, job: _Job, error: str) -> None:
        self._tell(job, Event(job.ticket, error=error))

    def _tell(self, job: _Job, event: Event) -> None:
        """Call the request's function, unless the request was cancelled meanwhile."""
        known = self._open.pop(job.ticket, None) if event.last else self._open.get(job.ticket)
        if known is None:
            return
        try:
            job.on_event(event)
        except FAULTS:
            # Whoever listened is gone; the others are not to suffer from it.
            self._open.pop(job.ticket, None)
            self._leave(job)

    def _leave(self, job: _Job) -> None:
        """Free what the batcher holds for a request."""
        if job.number is None or self._jobs.pop(job.number, None) is None:
            return
        try:
            self._batcher.cancel(job.number)
        except FAULTS:
            self._failures += 1


def _said(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {fault}" if not isinstance(fault, WhippetError) else str(fault)
