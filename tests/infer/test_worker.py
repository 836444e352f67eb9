"""The worker's thread: requests from other threads, bounds, cancellation, faults, and a tidy end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from whippet.errors import UsageError
from whippet.infer.requests import Drawn, Event, Request
from whippet.infer.sampling import Sampling
from whippet.infer.worker import Closed, Full, Refused, Worker


def asked(tokens: int, *prompt: int) -> Request:
    return Request(prompt or (1, 2, 3), Sampling(max_new_tokens=tokens), frozenset())


@dataclass
class Counter:
    """An engine that answers each request with 0, 1, 2, ...; ``gate`` lets it step, ``broken`` makes a step fail."""

    rows: int = 4
    gate: threading.Event = field(default_factory=threading.Event)
    broken: Callable[[], None] | None = None
    queue: deque[tuple[int, Request]] = field(default_factory=deque)
    active: dict[int, tuple[Request, int]] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    last: int = 0
    cache_used: int = 0
    cache_size: int = 100

    @property
    def running(self) -> int:
        return len(self.active)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def busy(self) -> bool:
        return bool(self.active or self.queue)

    def add(self, request: Request) -> int:
        if not request.prompt[0]:
            raise UsageError("the prompt is empty")
        self.last += 1
        self.queue.append((self.last, request))
        return self.last

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self.active.pop(number, None)
        self.queue = deque(one for one in self.queue if one[0] != number)

    def step(self) -> list[Event]:
        assert self.gate.wait(10)
        while self.queue and len(self.active) < self.rows:
            number, request = self.queue.popleft()
            self.active[number] = (request, 0)
        if self.broken is not None:
            self.broken()
        events = []
        for number, (request, count) in list(self.active.items()):
            self.active[number] = (request, count + 1)
            last = count + 1 == request.sampling.max_new_tokens
            events.append(Event(number, Drawn(count), "length" if last else None, cached=2 if count == 0 else 0))
            if last:
                del self.active[number]
        return events


class Heard:
    """What one request was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        assert threading.current_thread().name == "whippet-worker"
        self.events.append(event)
        if event.last:
            self.over.set()

    @property
    def ids(self) -> list[int]:
        return [event.drawn.id for event in self.events if event.drawn is not None]


@pytest.fixture
def engine() -> Counter:
    made = Counter()
    made.gate.set()
    return made


@pytest.fixture
def worker(engine: Counter) -> Iterator[Worker]:
    made = Worker(engine, max_rows=engine.rows, max_waiting=3)
    yield made
    engine.gate.set()
    assert made.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_each_request_hears_its_own_events(worker: Worker) -> None:
    heard = [Heard() for _ in range(6)]
    numbers = [worker.submit(asked(3 + place), one) for place, one in enumerate(heard)]
    for place, one in enumerate(heard):
        assert one.over.wait(10)
        assert one.ids == list(range(3 + place)) and {event.number for event in one.events} == {numbers[place]}
        assert one.events[-1].finish == "length" and one.events[0].cached == 2
    figures = worker.figures()
    assert (figures.requests, figures.prompt_tokens, figures.cached_tokens) == (6, 18, 12)
    assert figures.generated_tokens == sum(range(3, 9)) and figures.healthy
    assert (figures.running, figures.waiting, figures.cache_size) == (0, 0, 100)


def test_submitting_from_many_threads(engine: Counter) -> None:
    worker = Worker(engine, max_rows=4, max_waiting=1000)
    heard = [Heard() for _ in range(200)]

    def submit(part: int) -> None:
        for one in heard[part::8]:
            worker.submit(asked(5), one)

    threads = [threading.Thread(target=submit, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one.over.wait(10) and one.ids == [0, 1, 2, 3, 4] for one in heard)
    assert len({event.number for one in heard for event in one.events}) == 200
    assert worker.close()


def test_no_more_are_taken_than_may_wait(engine: Counter, worker: Worker) -> None:
    engine.gate.clear()
    heard = [Heard() for _ in range(7)]
    numbers = [worker.submit(asked(2), one) for one in heard]
    with pytest.raises(Full, match="7 requests"):
        worker.submit(asked(2), Heard())
    worker.cancel(numbers[6])  # a place is free as soon as somebody leaves
    late = Heard()
    worker.submit(asked(2), late)
    engine.gate.set()
    assert late.over.wait(10) and all(one.over.wait(10) for one in heard[:6]) and not heard[6].events
    assert engine.last == 7, "the one that left was never begun"


def test_a_cancelled_request_frees_its_place_and_hears_no_more(engine: Counter, worker: Worker) -> None:
    heard = Heard()
    number = worker.submit(asked(10**9), heard)
    until(lambda: len(heard.events) > 3)
    worker.cancel(number)
    until(lambda: not engine.busy)
    count = len(heard.events)
    other = Heard()
    worker.submit(asked(3), other)
    assert other.over.wait(10) and len(heard.events) <= count + 1 and not heard.over.is_set()
    worker.cancel(number), worker.cancel(12345)
    assert worker.figures().cancelled == 1 and worker.figures().running == 0


def test_a_request_that_can_never_be_answered(worker: Worker) -> None:
    heard = Heard()
    number = worker.submit(asked(3, 0), heard)
    assert heard.over.wait(10) and heard.events == [Refused(number, error="the prompt is empty")]
    assert worker.figures().refused == 1 and worker.figures().failed == 0


@pytest.mark.parametrize("fault", [RuntimeError("CUDA out of memory"), KeyError("x"), AssertionError("no")])
def test_a_step_that_fails_ends_its_requests_and_no_later_ones(
    engine: Counter, worker: Worker, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        engine.broken = None
        raise fault

    engine.gate.clear()
    heard = [Heard(), Heard()]
    engine.broken = fail
    for one in heard:
        worker.submit(asked(3), one)
    until(lambda: engine.last >= 1)
    engine.gate.set()
    assert heard[0].over.wait(10) and not heard[0].ids and type(fault).__name__ in str(heard[0].events[-1].error)
    assert heard[1].over.wait(10)
    later = Heard()
    worker.submit(asked(3), later)
    assert later.over.wait(10) and later.ids == [0, 1, 2] and worker.figures().healthy
    assert "a step failed" in caplog.text and not engine.busy and 1 in engine.cancelled


def test_an_engine_that_always_fails_is_not_healthy(engine: Counter, worker: Worker) -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    engine.broken = fail
    for _ in range(3):
        heard = Heard()
        worker.submit(asked(3), heard)
        assert heard.over.wait(10)
    until(lambda: not worker.figures().healthy)
    engine.broken = None
    heard = Heard()
    worker.submit(asked(3), heard)
    assert heard.over.wait(10) and heard.ids == [0, 1, 2] and worker.figures().healthy


def test_a_listener_that_fails_harms_nobody_else(engine: Counter, worker: Worker) -> None:
    def deaf(event: Event) -> None:
        raise RuntimeError("Event loop is closed")

    heard = Heard()
    worker.submit(asked(50), deaf)
    worker.submit(asked(5), heard)
    assert heard.over.wait(10) and heard.ids == list(range(5))
    until(lambda: not engine.busy)
    assert engine.cancelled == [1]


def test_closing_answers_what_was_taken(engine: Counter) -> None:
    worker = Worker(engine, max_rows=4)
    heard = [Heard() for _ in range(9)]
    for one in heard:
        worker.submit(asked(20), one)
    assert worker.close(timeout=10)
    assert all(one.ids == list(range(20)) for one in heard)
    with pytest.raises(Closed):
        worker.submit(asked(1), Heard())
    assert not worker.figures().healthy and worker.close()


def test_closing_in_a_hurry_ends_the_rest_with_an_error(engine: Counter) -> None:
    worker = Worker(engine, max_rows=4)
    heard = [Heard() for _ in range(6)]
    for one in heard:
        worker.submit(asked(10**9), one)
    until(lambda: len(heard[0].events) > 2)
    assert worker.close(timeout=0.05)
    assert all(one.over.is_set() and "stopped" in str(one.events[-1].error) for one in heard)


def test_bounds_that_make_no_sense(engine: Counter) -> None:
    with pytest.raises(UsageError, match="max_waiting = -1"):
        Worker(engine, max_rows=1, max_waiting=-1)
