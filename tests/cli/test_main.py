"""The table of verbs: help, unknown words, errors with their exit codes, JSON errors."""

from __future__ import annotations

import json
import os
import signal
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
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: whippet" in err


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune", "--json"], "required: MODEL|RECIPE.toml"),
        (["generate", "m", "--json", "--prompt", "x", "--top-k", "many"], "--top-k: invalid int value: 'many'"),
        (["data", "show", "--js", "f", "--format", "odd"], "--format: invalid choice: 'odd'"),
        (["finetun", "m", "--json"], "invalid choice: 'finetun'"),
    ],
)
def test_mistaken_arguments_as_json(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["exit"] == 2 and error["type"] == "UsageError" and said in error["message"]
    assert err.startswith("usage: whippet ") and err.endswith(f"\nwhippet: {error['message']}\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([None, None], ["PASSIVE", "1000"]),
        ([None, "7"], ["PASSIVE", "7"]),
        (["ACTIVE", None], ["ACTIVE", None]),
        (["", None], ["", None]),
    ],
)
def test_waiting_threads_sleep_unless_told_otherwise(before: list[str | None], after: list[str | None]) -> None:
    """Set when torch is not there yet, since it is read once; and in nobody's process but the command line's."""
    code = """
import builtins, json, os
import whippet, whippet.cli.main as cli
now = lambda: [os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")]
real, seen = builtins.__import__, [now()]
def watched(name, *rest, **named):
    if name == "torch" and len(seen) == 1:
        seen.append(now())
    return real(name, *rest, **named)
builtins.__import__ = watched
assert cli.main(["plan", "no-such-folder", "no-such-file"]) != 0
print(json.dumps(seen))
"""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {name: value for name, value in zip(names, before, strict=True) if value is not None}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [before, after]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_has_a_last_word(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a verb that knows nothing of signals; and who called ``main`` gets the handlers back."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("whippet.cli.plan.run", lambda args: signal.raise_signal(number))
    assert main(["plan", "m", "d"]) == code
    assert capsys.readouterr() == ("", "whippet: stopped\n")
    assert main(["plan", "m", "d", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"error": {"type": "Stopped", "message": "stopped", "exit": code}}
    assert signal.getsignal(signal.SIGTERM) == before


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
