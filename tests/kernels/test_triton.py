"""Runs the files ``interpreted*.py`` with Triton's interpreter switched on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whippet.kernels import triton_jit


@pytest.mark.skipif(triton_jit.triton is None, reason="triton is not installed")
@pytest.mark.parametrize("name", ["", "_copies", "_fp8", "_paged", "_rows"])
def test_kernels_under_the_interpreter(name: str) -> None:
    cases = Path(__file__).with_name(f"interpreted{name}.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
