"""Ctrl-C and SIGTERM: while training the first lets the step end and be saved; everywhere else it stops at once.

``terminable`` is for what surrounds the loop (preparation, load, results), ``Interrupts`` for the loop. The command
line uses this page before torch is there, so it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """SIGTERM came: what KeyboardInterrupt is to Ctrl-C. Where nobody tells of it, the process ends with 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let the first SIGTERM raise ``Terminated`` here, so that there is a last word; a second one kills."""
    # Whoever handles or ignores the signal already knows better; and only the main thread may.
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def arrived(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, arrived)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Interrupts:
    """``with Interrupts() as interrupts:`` … ``interrupts.signal`` is None until one came, then its number."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may handle signals; a run in another one is stopped by whoever started it.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def name(self) -> str:
        """``SIGINT`` or ``SIGTERM``."""
        assert self.signal is not None
        return signal.Signals(self.signal).name

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
