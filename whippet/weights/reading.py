"""Bytes of files into memory, of the host or of a GPU.

Comes in: a file, a place in it and a device. Goes out: a uint8 tensor that is nobody else's. What is large is read by
several threads at once, each a piece: one alone copies out of the system's cache of files, and into memory that it is
the first to touch, at a fraction of the rate of either memory or a disk. On their way to a GPU pieces go through pinned
buffers, a few megabytes in all. Files are read and not mapped: pages of a mapped file count as the process' memory for
as long as it is open, and so only one could be.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

PIECE = 4 * 2**20
THREADS = 8


class Files:
    """Files that are read from, each opened once. ``close`` lets go of them and of the threads; what was read stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Path, FileIO] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._buffers: SimpleQueue[Tensor] | None = None
        """Pinned, one a thread."""

    def read(self, path: Path, begin: int, size: int, device: torch.device) -> Tensor:
        """``size`` bytes from ``begin`` on, uint8 ``[size]``. OSError for a file that ends before, or none."""
        file = self._file(path)
        out = torch.empty(size, dtype=torch.uint8, device=device)
        if device.type != "cuda":
            self._each(size, lambda start, end: self._fill(file, begin + start, out[start:end]))
        elif size <= PIECE:
            here = torch.empty(size, dtype=torch.uint8)
            self._fill(file, begin, here)
            out.copy_(here)
        else:
            self._send(file, begin, out)
        return out

    def close(self) -> None:
        """Let go of what is open."""
        if self._pool is not None:
            self._pool.shutdown()
        for file in self._open.values():
            file.close()
        self._pool, self._buffers = None, None
        self._open.clear()

    def _file(self, path: Path) -> FileIO:
        if path not in self._open:
            self._open[path] = FileIO(path)
        return self._open[path]

    def _each(self, size: int, work: Callable[[int, int], None]) -> None:
        """``work(start, end)`` for each piece, by several threads if there are several."""
        pieces = [(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]
        if len(pieces) == 1:
            work(*pieces[0])
        elif pieces:
            self._pool = self._pool or ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
            list(self._pool.map(lambda piece: work(*piece), pieces))

    def _send(self, file: FileIO, begin: int, out: Tensor) -> None:
        """Fill ``out``, of a GPU, through the pinned buffers. All has arrived when this returns."""
        if self._buffers is None:
            self._buffers = SimpleQueue()
            for _ in range(THREADS):
                self._buffers.put(torch.empty(PIECE, dtype=torch.uint8, pin_memory=True))
        buffers, free = self._buffers, torch.cuda.current_stream(out.device).record_event()

        def send(start: int, end: int) -> None:
            buffer = buffers.get()
            try:
                here = buffer[: end - start]
                self._fill(file, begin + start, here)
                stream = _stream(out.device)
                # The memory of ``out`` may have been another's, whose work is not done yet.
                stream.wait_event(free)
                with torch.cuda.stream(stream):
                    out[start:end].copy_(here, non_blocking=True)
                stream.synchronize()
            finally:
                buffers.put(buffer)

        self._each(len(out), send)

    def _fill(self, file: FileIO, begin: int, out: Tensor) -> None:
        view, done = out.numpy().data, 0
        while done < len(view):
            if sys.platform == "linux":
                count = os.preadv(file.fileno(), [view[done:]], begin + done)
            else:
                count = self._read_in_turn(file, begin + done, view[done:])
            if count == 0:
                raise OSError(f"it ends at byte {begin + done:,}, before {begin + len(view):,}")
            done += count

    def _read_in_turn(self, file: FileIO, begin: int, view: memoryview) -> int:
        """Where a file is read at its one position only."""
        with self._lock:
            file.seek(begin)
            return file.readinto(view) or 0


_of_thread = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of this thread's own."""
    streams = _of_thread.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    found: torch.cuda.Stream = streams[device]
    return found
