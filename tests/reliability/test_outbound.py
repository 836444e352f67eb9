"""A local run opens no connection: counted by an audit hook over every verb that works on local files (``walk.py``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WALK = Path(__file__).with_name("walk.py")
LOCAL = {"socket.gethostname"}
"""Asks the kernel, not the network: tensorboard names its file so."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")
"""What would keep a library from calling home, so that the code could not be seen to."""


def events(checkpoint: Path, folder: Path, *code: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """What the hook heard on the walk, but for what asks the kernel alone."""
    heard = folder / "events.txt"
    env = {key: value for key, value in os.environ.items() if key not in OFFLINE} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WALK), str(checkpoint), str(folder), str(heard), *code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, errors="replace")
    return [line for line in heard.read_text().splitlines() if line.split()[0] not in LOCAL], done


def test_a_whole_local_run_makes_no_network_event(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Plan, data check, training, evaluation, samples, exports, generate and chat: 0 events, no other program run."""
    heard, done = events(tiny_checkpoint, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert heard == []
    assert {"run/hf/verify.json", "run/samples.jsonl", "exported/verify.json", "full/summary.json"} <= {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")
    }


@pytest.mark.parametrize(
    ("call", "event"),
    [
        ("socket.socket().connect(('127.0.0.1', 9))", "socket.connect"),
        ("socket.getaddrinfo('localhost', 80)", "socket.getaddrinfo"),
        ("socket.socket().bind(('127.0.0.1', 0))", "socket.bind"),
        ("socket.gethostbyname('localhost')", "socket.gethostbyname"),
        ("urllib.request.urlopen('http://127.0.0.1:9/')", "urllib.Request"),
        ("__import__('huggingface_hub').HfApi(endpoint='http://127.0.0.1:9').whoami('hf_x')", "socket.connect"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("os.waitpid(os.fork() or (socket.socket().connect_ex(('127.0.0.1', 9)), os._exit(0)), 0)", "socket.connect"),
    ],
)
def test_the_hook_hears(call: str, event: str, tmp_path: Path) -> None:
    """The walk would show each of these calls, a forked child's and a library's too: it ends before its first verb."""
    code = f"import os, socket, subprocess, sys, urllib.request\ntry:\n    {call}\nfinally:\n    os._exit(0)"
    heard, _ = events(tmp_path, tmp_path, code)
    assert event in {line.split()[0] for line in heard}
