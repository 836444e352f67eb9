"""``whippet chat``: from a pipe, on a terminal, comparing; the conversation behind it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers_infer import CHAT, write_checkpoint
from rich.console import Console

import whippet
from whippet import lora
from whippet.chat.messages import Conversation, Message
from whippet.cli.chat_screen import SideBySide, Wrapped
from whippet.cli.chat_session import Session, Voice
from whippet.cli.main import main
from whippet.errors import UsageError
from whippet.infer.engine import Engine
from whippet.infer.model import Model
from whippet.infer.requests import Event
from whippet.infer.stream import Stream
from whippet.model.paged import PAGE
from whippet.options import LoraOptions
from whippet.weights.adapter import save_adapter
from whippet.weights.load import load_decoder

FEW = ["--temperature", "0", "--max-new-tokens", "8", "--base", "fp32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny"), context=256))


@pytest.fixture(scope="module")
def tuned(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    decoder, options = load_decoder(checkpoint, base="fp32", device="cpu"), LoraOptions(r=4)
    lora.attach(decoder, options, seed=0)
    with torch.no_grad():
        for parameter in lora.adapter_parameters(decoder).values():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    save_adapter(decoder, options, folder, checkpoint)
    return str(folder)


@pytest.fixture(scope="module")
def model(checkpoint: str) -> Model:
    return whippet.load(checkpoint, base="fp32", device="cpu")


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def replies(model: Model, *asked: str, system: str | None = None) -> list[str]:
    """What the model says to each message of one conversation."""
    session = Session([Voice("", model)], {"temperature": 0, "max_new_tokens": 8}, system)
    said = []
    for text in asked:
        session.say(text)
        said.append("".join(session.answer(session.voices[0])))
    return said


def test_every_line_of_a_pipe_is_a_message(
    checkpoint: str, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "one\n\ntwo\n/reset\n/etc/fstab what?\n/exit\nthree\n")
    assert main(["chat", checkpoint, *FEW]) == 0
    out, err = capsys.readouterr()
    expected = [*replies(model, "one", "two"), *replies(model, "/etc/fstab what?")]
    assert out == "".join(f"{reply}\n" for reply in expected)
    assert err == "the conversation begins anew\n"
    assert expected[1] != replies(model, "two")[0]  # the history matters


def test_json_is_a_line_a_reply(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "one\ntwo\n")
    assert main(["chat", checkpoint, *FEW, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["message"]["role"] for one in told] == ["assistant", "assistant"]
    assert all(one["new_tokens"] <= 8 and one["finish"] in ("stop", "length") for one in told)


def test_prompt_asks_once(checkpoint: str, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", checkpoint, *FEW, "--prompt", "one", "--system", "be brief"]) == 0
    assert capsys.readouterr().out == replies(model, "one", system="be brief")[0] + "\n"


def test_compare_shows_base_and_tuned(
    checkpoint: str, tuned: str, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", tuned, *FEW, "--prompt", "one", "--compare", "--json"]) == 0
    base, other = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (base["voice"], other["voice"]) == ("base", "tuned")
    assert base["message"]["content"] == replies(model, "one")[0].strip()
    assert other["message"] != base["message"]
    assert main(["chat", tuned, *FEW, "--prompt", "one", "--compare", checkpoint, "--json"]) == 0
    named = json.loads(capsys.readouterr().out.splitlines()[0])
    assert named["voice"] == checkpoint and named["message"] == base["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--compare"], "no adapter to compare with"), (["--temperature", "-1"], "temperature"),
     (["--template", "nope"], "nope")],
)  # fmt: skip
def test_errors_are_one_line(
    checkpoint: str, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["chat", checkpoint, "--prompt", "x", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_base_model_needs_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_checkpoint(tmp_path, template=None))
    assert main(["chat", folder, "--prompt", "x"]) == 2
    assert re.search(r"--template.*chatml", capsys.readouterr().err)
    assert main(["chat", folder, "--prompt", "x", "--template", "chatml", *FEW]) == 0


def test_a_conversation_that_outgrows_the_context_is_taken_back(model: Model) -> None:
    session = Session([Voice("", model)], {"temperature": 0, "max_new_tokens": 4}, None)
    session.say("one")
    list(session.answer(session.voices[0]))
    before = list(session.voices[0].messages)
    session.say("0 " * 200)
    with pytest.raises(UsageError, match="no room in the model's context of 256"):
        list(session.answer(session.voices[0]))
    assert session.voices[0].messages == before


def test_a_reply_that_is_broken_off_is_kept_as_far_as_it_came(model: Model) -> None:
    session = Session([Voice("", model)], {"temperature": 0, "max_new_tokens": 30}, None)
    session.say("one")
    pieces = session.answer(session.voices[0])
    first = next(pieces)
    pieces.close()
    assert session.voices[0].messages[-1].content == first.strip()
    assert session.take_back() == "one" and session.voices[0].messages == []
    with pytest.raises(UsageError, match="nothing was asked yet"):
        session.take_back()


def finished(model: Model) -> Stream:
    return model.stream("one", max_new_tokens=3).drain()


def test_replies_wrap_between_words(model: Model) -> None:
    text = "the quick brown whippet runs over two lazy dogs\nand 日本語 日本語 日本語 日本語 one grey cat " + "x" * 30
    for size in (1, 3, 1000):
        out = io.StringIO()
        with Wrapped(Console(file=out, width=20)) as screen:
            for start in range(0, len(text), size):
                screen.push(text[start : start + size])
            screen.finish(finished(model))
        lines = out.getvalue().splitlines()
        assert lines[:7] == [
            "the quick brown ", "whippet runs over ", "two lazy dogs", "and 日本語 日本語 ", "日本語 日本語 one ",
            "grey cat ", "x" * 30,
        ]  # fmt: skip
        assert lines[7].startswith("3 tokens")


def test_a_comparison_fits_in_80_columns(model: Model) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with SideBySide(console, ["base", "tuned"]) as screen:
        for reply in ("no idea [bold]at all", "an answer\n" * 3):
            screen.push(reply)
            screen.finish(finished(model))
    # Where the cursor goes back to draw the next frame, a new line begins.
    drawn = re.sub(r"\r|\x1b\[[0-9]*[AK]", "\n", out.getvalue())
    table = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert max(map(len, table.splitlines())) == 80
    assert re.search(r"base +┃ +tuned", table) and re.search(r"no idea \[bold\]at all +│ +an answer", table)
    assert table.count("3 tokens") >= 2


def test_the_next_turn_finds_the_talk_in_the_cache(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each prompt what was asked and answered before is known, up to a whole page."""
    cached: list[int] = []
    heard = Engine.next

    def listening(engine: Engine, number: int) -> Event:
        event = heard(engine, number)
        cached.append(event.cached)
        return event

    monkeypatch.setattr(Engine, "next", listening)
    voice = Voice("", whippet.load(checkpoint, base="fp32", device="cpu"))
    session = Session([voice], {"temperature": 0, "max_new_tokens": 12}, "the quick brown whippet " * 4)
    known = []
    for text in ("one", "0123456789" * 5, "three"):
        session.say(text)
        cached.clear()
        list(session.answer(voice))
        known.append((cached[0], len(voice.stream.prompt_ids)))
    (first, size), (second, longer), (third, _) = known
    assert first == 0 and size - PAGE < second <= size and longer - PAGE < third <= longer and third > second > 0


def test_commands_that_a_talk_without_tools_has_not(
    checkpoint: str, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "/tools\n")
    assert main(["chat", checkpoint, *FEW]) == 0
    assert capsys.readouterr().out == replies(model, "/tools")[0] + "\n"


def test_template_variables_reach_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{{ mood }}{% for n in years | default([]) %}<{{ n + 1 }}>{% endfor %}" + CHAT
    folder = str(write_checkpoint(tmp_path, template=template))
    plain = whippet.load(folder, base="fp32")
    told = ["--template-variable", "mood=brief", "--template-variable", "years=[2024]"]
    assert main(["chat", folder, *FEW, "--prompt", "x", *told, "--compare", folder, "--json"]) == 0
    sizes = [json.loads(line)["prompt_tokens"] for line in capsys.readouterr().out.splitlines()]
    asked = Conversation((Message("user", "x"),), template_variables={"mood": "brief", "years": [2024]})
    assert sizes == [len(plain.prompt_ids(asked))] * 2 and sizes[0] > len(plain.prompt_ids(asked.messages))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_talk_in_which_all_is_on_a_terminal(checkpoint: str, tmp_path: Path) -> None:
    """Earlier lines come back at the arrow keys, a reply is drawn while it grows, and --no-history keeps nothing."""
    import os
    import pty
    import select

    kept = tmp_path / ".local" / "state" / "whippet" / "chat_history"
    kept.parent.mkdir(parents=True)
    kept.write_text("one\n/exit\n")
    terminal, slave = pty.openpty()
    talk = subprocess.Popen(
        [sys.executable, "-m", "whippet", "chat", checkpoint, *FEW, "--no-history"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"HOME": str(tmp_path), "TERM": "xterm-256color"},
    )
    os.close(slave)
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            assert select.select([terminal], [], [], 60)[0], seen
            came = os.read(terminal, 4096)
            if not came:
                raise OSError("the other end is closed")
            seen += came
        seen = seen.partition(wanted)[2]

    with talk:
        try:
            until(b"> ")
            os.write(terminal, b"\x1b[A/help\r")  # nothing comes before it: --no-history
            until(b"Ctrl-C stops a reply.")
            until(b"> ")
            os.write(terminal, b"two\r")
            until(b"\x1b[2K")  # the growing reply was drawn and wiped out
            until(b"8 tokens")
            until(b"> ")
            os.write(terminal, b"\x1b[A\x1b[A\r")  # back to /help
            until(b"Ctrl-C stops a reply.")
            os.write(terminal, b"/exit\r")
            with suppress(OSError):
                until(b"never")
            assert talk.wait(60) == 0
        finally:
            talk.kill()
            os.close(terminal)
    assert kept.read_text() == "one\n/exit\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_talk_on_a_terminal(checkpoint: str, tmp_path: Path) -> None:
    """The program on a pseudo-terminal: two messages, every command, the end of input."""
    import os
    import pty

    saved = tmp_path / "talk.json"
    typed = f"one\n/regenerate\n/help\n/nope\ntwo\\\nlines\n/save {saved}\n/save {saved}\n/system be brief\n/exit\n"
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "whippet", "chat", checkpoint, *FEW]
    with subprocess.Popen(
        command,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
    ) as talk:
        os.write(master, typed.encode())
        out, _ = talk.communicate(timeout=120)
    os.close(master)
    os.close(slave)
    assert talk.returncode == 0
    for wanted in (
        "fp32 on cpu",
        "8 tokens",
        "/regenerate answer",
        "unknown command /nope",
        "4 messages in",
        "exists already",
        "with this system message",
    ):
        assert wanted in " ".join(out.split()), wanted
    roles = [message["role"] for message in json.loads(saved.read_text())["messages"]]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert json.loads(saved.read_text())["messages"][2]["content"] == "two\nlines"
    kept = tmp_path / ".local" / "state" / "whippet" / "chat_history"
    assert kept.read_text() == typed
