"""A process beside this one, run to its end, to a moment, or to its time limit; nothing of it is left behind.

Comes in: a command. Goes out: ``Ended``. Output goes to files, since a pipe that nobody reads stops its writer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL = 0.01


@dataclass(frozen=True)
class Ended:
    """How it went. Times are seconds; ``began`` is of the clock that processes share (``time.time``)."""

    command: tuple[str, ...]
    code: int | None
    """None: it was ended here, at its limit or since what it was run for had come."""
    out: str
    err: str
    began: float
    seconds: float
    came: bool
    """Whether ``until`` said so."""

    def complaint(self) -> str:
        """One line that says why it is no success."""
        if self.code is None:
            return f"ran past {self.seconds:.0f} s and was ended"
        said = [line.strip() for line in (*self.err.splitlines(), *self.out.splitlines()) if line.strip()]
        # A traceback ends in the exception; what comes after it are warnings at exit.
        told = next((line for line in reversed(said) if _is_exception(line)), said[-1] if said else "it said nothing")
        return f"ended with {self.code}: {told[:300]}"


def run_child(
    command: Sequence[str],
    *,
    limit: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    until: Callable[[], bool] | None = None,
) -> Ended:
    """Run ``command`` until it ends, ``until`` is true, or ``limit`` seconds have passed. Then it and its children are
    ended, whatever happens here."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began, start = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True
        )
        came = False
        try:
            while process.poll() is None and time.perf_counter() - start < limit:
                if until is not None and (came := until()):
                    break
                time.sleep(POLL)
            code = process.poll()
            came = came or (until is not None and until())
            seconds = time.perf_counter() - start
        finally:
            _end(process)
        return Ended(tuple(command), code, _text(out), _text(err), began, seconds, came)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and its group, of which some may outlive it."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(file: object) -> str:
    assert hasattr(file, "seek") and hasattr(file, "read")
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def _is_exception(line: str) -> bool:
    """Whether it looks like ``package.SomeError: why``."""
    name, colon, _ = line.partition(":")
    return bool(colon) and name.replace(".", "_").isidentifier() and name.endswith(("Error", "Exception"))
