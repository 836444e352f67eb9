"""Processes beside this one: their ends, their limits, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from whippet.bench.child import run_child


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def is_gone(pid: int, times: int = 200) -> bool:
    """Whether that process ends while it is looked at so often."""
    for _ in range(times):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
            return True  # dead, and nobody has asked yet
        time.sleep(0.02)
    return False


def test_one_that_ends() -> None:
    ended = run_child(python("import sys; print('out'); print('err', file=sys.stderr)"), limit=20)
    assert (ended.code, ended.out, ended.err, ended.came) == (0, "out\n", "err\n", False)
    assert abs(ended.began - time.time()) < 20


def test_one_that_says_more_than_a_pipe_holds() -> None:
    assert len(run_child(python("print('x' * 10**6)"), limit=20).out) == 10**6 + 1


def test_the_exception_is_what_is_told() -> None:
    code = "import atexit, sys; atexit.register(lambda: print('bye', file=sys.stderr)); raise ValueError('three: no')"
    assert run_child(python(code), limit=20).complaint() == "ended with 1: ValueError: three: no"
    assert run_child(python("import sys; sys.exit(3)"), limit=20).complaint() == "ended with 3: it said nothing"


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_one_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    """Its child writes its own number, and must be gone too."""
    place = tmp_path / "pid"
    child = f"import os, time; open({str(place)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    ended = run_child(python(code), limit=20, until=lambda: place.exists() and bool(place.read_text()))
    assert ended.came and ended.code is None and ended.seconds < 20
    assert is_gone(int(place.read_text()))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP")
def test_a_closed_terminal_ends_bench_and_its_children(tmp_path: Path) -> None:
    """They have a session of their own, so nobody else would."""
    place = tmp_path / "pid"
    child = f"import os, time; open({str(place)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"""
import signal, sys
from whippet.bench import child, table
from whippet.cli.main import main

def rows(*_):
    yield child.run_child([sys.executable, "-c", {child!r}], limit=50)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever runs these tests may ignore it
table.measure_rows = rows
code = main(["bench", "--device", "cpu"])
assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
sys.exit(code)
"""
    process = subprocess.Popen(python(code), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1500):
            if (place.exists() and place.read_text()) or process.poll() is not None:
                break
            time.sleep(0.02)
        pid = int(place.read_text())
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    try:
        assert is_gone(pid)
    finally:
        if not is_gone(pid, times=1):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 143 and err == "whippet: stopped\n"


def test_a_limit() -> None:
    ended = run_child(python("import time; time.sleep(60)"), limit=0.3)
    assert ended.code is None and 0.3 <= ended.seconds < 10 and ended.complaint().startswith("ran past 0 s")
