"""What was typed comes back in the next talk, from a file that only its owner reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from whippet.cli import chat_history
from whippet.cli.chat_history import History, history_file

readline = pytest.importorskip("readline")


def remembered() -> list[str]:
    return [readline.get_history_item(place) for place in range(1, readline.get_current_history_length() + 1)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return history_file()


def test_lines_are_kept_for_the_next_talk(file: Path) -> None:
    first = History(file)
    for line in ("one", "", "zwei \udcff"):
        first.add(line)
    other = History(file)
    other.add("three")
    first.add("four")  # two talks at a time
    assert file.read_bytes() == b"one\nzwei \xff\nthree\nfour\n"
    History(file)
    assert remembered() == ["one", "zwei \udcff", "three", "four"]


def test_only_the_owner_may_read_it(file: Path) -> None:
    old = os.umask(0)
    try:
        History(file).add("one")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        file.chmod(0o644)
        History(file).add("two")
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_it_does_not_grow_for_ever(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_history, "MOST", 3)
    History(file)
    file.write_text("".join(f"{i}\n" for i in range(9)))
    History(file)
    assert remembered() == ["6", "7", "8"] and file.read_text() == "6\n7\n8\n"


def test_without_a_file_nothing_is_written(file: Path) -> None:
    history = History(None)
    history.add("one")
    assert remembered() == ["one"] and not file.parent.exists()


def test_a_file_that_cannot_be_used_is_told_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.mkdir(parents=True)
    history = History(file)
    history.add("one")
    history.add("two")
    err = capsys.readouterr().err
    assert err == f"what you type is not kept for the next talk: {file}: Is a directory\n"
    assert remembered() == ["one", "two"]
