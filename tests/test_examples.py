"""The examples run as they stand, with the model that comes with whippet."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from whippet.demo import MODEL

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str) -> list[str]:
    """The lines that an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"pipeline.py", "tools.py"}


def test_the_pipeline_of_the_card() -> None:
    (line,) = run("pipeline.py", str(MODEL))
    reply: dict[str, Any] = ast.literal_eval(line)
    assert reply["role"] == "assistant" and reply["content"]


def test_the_tool_of_the_card() -> None:
    """The bundled model calls nothing by itself, so the call is the card's: its result goes back, and it answers."""
    first, call, *prompt, answer = run("tools.py")
    assert ast.literal_eval(first)["role"] == ast.literal_eval(answer)["role"] == "assistant"
    assert call == "calls get_current_temperature {'location': 'Paris, France'}"
    text = "\n".join(prompt)
    assert '{"name": "get_current_temperature", "description": "Get the current temperature at a location."' in text
    assert text.endswith(
        '<tool_call>{"name": "get_current_temperature", "arguments": {"location": "Paris, France"}}</tool_call><|end|>'
        "<|tool|>22.0<|end|><|assistant|>"
    )
