"""The table of verbs: help, unknown words, errors with their exit codes, JSON errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from whippet.cli.main import VERBS, main


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(f"    {verb} " in said for verb in VERBS)
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["finetun", "m", "d"], ["finetune", "--nope"], []])
def test_usage_errors_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["finetune", "m", "d", "--set", "lora.rank=3"], 2, "Did you mean 'lora.r'?"),
        (["finetune", "m", "d", "--set", "lora.r"], 2, "must be KEY=VALUE"),
        (["finetune", "m"], 2, "no data"),
        (["finetune", "none.toml"], 2, "none.toml: no such recipe"),
        (["finetune", "r.toml", "d"], 2, "is a recipe"),
        (["plan", "m", "d", "--set", "train.max_steps=x"], 2, "whole number"),
    ],
)
def test_one_line_on_stderr(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("whippet: ") and err.count("\n") == 1


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "m", "d", "--set", "lora.rank=3", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit"] == 2 and error["type"] == "UsageError" and "lora.r" in error["message"]


def test_a_mistyped_key_is_answered_before_torch_is_loaded() -> None:
    code = """
import sys
from whippet.cli.main import main
assert main(["finetune", "m", "d", "--set", "lora.rank=3"]) == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "whippet", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("whippet 0.")
    assert (Path(sys.executable).parent / "whippet").exists()
