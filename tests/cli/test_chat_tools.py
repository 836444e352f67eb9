"""``whippet chat --tools``: calls are asked for, made, and their results given back to the model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_tools import scripted, tools_file

from whippet.chat.messages import ToolCall
from whippet.cli import asking
from whippet.cli.chat_tools import Permission
from whippet.cli.main import main
from whippet.infer.model import Model

CALL = '<tool_call>\n{"name": "get_current_temperature", "arguments": {"location": "Paris"}}\n</tool_call>'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the model say these replies; the model comes back."""

    def say(*replies: str) -> Model:
        model = scripted(tmp_path, replies)
        monkeypatch.setattr(asking, "open_model", lambda *args, **more: model)
        return model

    return say


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tools_file(tmp_path))


def test_calls_are_made_and_told(said: Any, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    said(CALL, "22 °C.")
    assert main(["chat", "x", "--prompt", "How warm?", "--tools", file, "--yes"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{CALL}\n22 °C.\n"
    assert err == "calls get_current_temperature(location='Paris')\nget_current_temperature gave 22.0\n"


def test_json_has_a_line_for_each_message(said: Any, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    said(CALL, "22 °C.")
    assert main(["chat", "x", "--prompt", "How warm?", "--tools", file, "--yes", "--json"]) == 0
    call, result, answer = (json.loads(line)["message"] for line in capsys.readouterr().out.splitlines())
    assert call["tool_calls"][0]["function"]["arguments"] == '{"location": "Paris"}'
    assert result == {"role": "tool", "content": "22.0", "tool_call_id": "call00000", "name": "get_current_temperature"}
    assert call["tool_calls"][0]["id"] == "call00000" and answer["content"] == "22 °C."


@pytest.mark.parametrize(
    ("typed", "results"),
    [("y\nn\n", [True, False]), ("a\n", [True, True]), ("\n\n", [False, False]), ("", [False] * 2)],
)
def test_each_call_is_asked_for(
    typed: str,
    results: list[bool],
    said: Any,
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = said(f"{CALL}\n{CALL}", "So.")
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert main(["chat", "x", "--prompt", "How warm?", "--tools", file]) == 0
    given = [message.content for message in model.asked[1][0] if message.role == "tool"]
    assert [content == "22.0" for content in given] == results
    assert "call get_current_temperature(location='Paris')? [y]es, [n]o, [a]ll: " in capsys.readouterr().err


def test_a_call_is_shown_without_what_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert not Permission(always=False)(ToolCall("f\x1b[2J\n", {"a\x1b": "x" * 5_000}))
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\n" not in err and len(err) < 600


def test_trouble_and_endless_calls_are_told(said: Any, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    said('<tool_call>{"name": "get_current_temperature"}</tool_call>')
    assert main(["chat", "x", "--prompt", "?", "--tools", file, "--yes"]) == 0
    assert "not called: the tool call cannot be read: get_current_temperature: it has no" in capsys.readouterr().err
    model = said(*[CALL] * 20)
    assert main(["chat", "x", "--prompt", "?", "--tools", file, "--yes"]) == 0
    assert len(model.asked) == 9 and "for the 9th time in a row" in capsys.readouterr().err


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a␛[2Jb\n"), (False, "a\x1b[2Jb\n")])
def test_a_reply_cannot_steer_a_terminal(
    terminal: bool, shown: str, said: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said("a\x1b[2Jb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(["chat", "x", "--prompt", "?"]) == 0
    assert capsys.readouterr().out == shown


def test_tools_are_told(
    said: Any, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n/tools\nx\n/nope\n"))
    said("Hello.", "What?")
    assert main(["chat", "x", "--tools", file, "--yes"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello.\nWhat?\n" and "/tools  " in err and "/reset  " in err
    assert err.endswith(
        "  get_current_temperature(location): Get the current temperature at a location.\n  fail(why): Fail.\n"
    )


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--tools", "FILE"], "needs a terminal; --yes allows all of them"),
        (["--yes"], "--yes allows the calls of --tools FILE.py, which is not given"),
        (["--tools", "FILE", "--yes", "--compare"], "--tools cannot be joined with --compare"),
        (["--tools", "none.py", "--yes"], "none.py is no Python file"),
    ],
)
def test_wrong_arguments(
    more: list[str], complaint: str, said: Any, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said()
    words = [file if word == "FILE" else word for word in more]
    assert main(["chat", "x", "--prompt", "?", *words]) == 2
    assert complaint in capsys.readouterr().err
