"""Replies as markdown: nothing is lost, however long they are and however they come; what a terminal shows in the end
is what a block at a time would be."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from whippet.cli import chat_markdown
from whippet.cli.chat_markdown import Rendered, blocks, drawn
from whippet.infer.stream import Stream

STREAM = cast(Stream, SimpleNamespace(ids=[1], tokens_per_second=0.0, finish="stop"))
REPLY = """# Whippets

They are **fast**: see ![a](http://x/a.png) and [more](http://x/y).
First line
second line

1. one
2. two
   - inner

| dog | speed |
|---|---|
| whippet | 56 |

```python
""" + "".join(f"line_{i} = {i}\n" for i in range(60)) + "```\nThe *end*.<|im_end|>"  # fmt: skip
SHOWN = """Whippets

They are fast: see !a (http://x/a.png) and more
(http://x/y).
First line
second line

 1 one
 2 two
    • inner

 dog      speed
 ──────────────
 whippet  56

""" + "".join(f" line_{i} = {i}\n" for i in range(60)) + "\nThe end.<|im_end|>\n1 tokens"  # fmt: skip


def screen(raw: str, height: int) -> str:
    """What a terminal of so many lines holds after ``raw``, with all that has scrolled out of it, to the cursor."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\n|\r|[^\x1b\n\r]+", raw):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            assert part[-1] in "AKhl", part
            if part[-1] == "A":  # the cursor cannot leave the screen
                row = max(row - int(part[2:-1]), len(lines) - height, 0)
            elif part[-1] == "K":
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + part
            column += len(part)
    assert not "".join(lines[row:])
    return "\n".join(line.rstrip() for line in lines[:row])


def terminal(**more: Any) -> Console:
    return Console(
        file=io.StringIO(), width=50, height=12, color_system=None, force_terminal=True, highlight=False, **more
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("frame", [0.0, 3600.0])
@pytest.mark.parametrize("size", [3, 10_000])
def test_a_reply_longer_than_the_screen_is_whole(size: int, frame: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at every piece or hardly ever, in small pieces or one."""
    monkeypatch.setattr(chat_markdown, "FRAME", frame)
    monkeypatch.setattr(chat_markdown, "SHARE", 0)
    console = terminal()
    with Rendered(console) as shown:
        for start in range(0, len(REPLY), size):
            shown.push(REPLY[start : start + size])
        shown.finish(STREAM)
    assert re.sub("\n\n+", "\n\n", screen(written(console), 12)) == SHOWN


def test_the_end_of_what_grows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_markdown, "FRAME", 0)
    monkeypatch.setattr(chat_markdown, "SHARE", 0)
    console = terminal()
    with Rendered(console) as shown:
        shown.push(REPLY[: REPLY.index("line_41")])
        assert "line_40 = 40" in written(console)


def test_a_line_is_read_when_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark at its beginning may be a heading's or only a letter."""
    monkeypatch.setattr(chat_markdown, "FRAME", 0)
    monkeypatch.setattr(chat_markdown, "SHARE", 0)
    console = terminal()
    with Rendered(console) as shown:
        for piece in ("one\n", "#", "two\n", "#", " three"):
            shown.push(piece)
    assert screen(written(console), 12) == "one\n#two\n\nthree"


def test_what_came_is_shown_if_the_reply_fails() -> None:
    console = terminal()
    with pytest.raises(ValueError, match="no more"), Rendered(console) as shown:
        shown.push("one\n\n- tw")
        raise ValueError("no more")
    assert screen(written(console), 12).split() == ["one", "•", "tw"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('<tool_call>\n{"name": "f"}\n</tool_call>', '<tool_call>\n{"name": "f"}\n</tool_call>'),
        ("<think>a</think> <s> <b>b</b> &amp;", "<think>a</think> <s> <b>b</b> &amp;"),
        (r"\(x_1\) is \[y\]", r"\(x_1\) is \[y\]"),
        ("[a]: http://x\n\n[a]", "[a]: http://x\n\n[a]"),
        ("a\x1b[2Jb", "a␛[2Jb"),
        ("**very** <b>b</b>", "very <b>b</b>"),
        ("```\n```", "```\n```"),
        ("~~~yaml\na: 1\n~~~", " a: 1"),
        # What the picture would leave out: a cell too many, a title, what is nested too deep.
        ("| a |\n|---|\n| b | cc |", "| a |\n|---|\n| b | cc |"),
        ('[a](http://x "title")', '[a](http://x "title")'),
        ("> " * 30 + "deep", ("> " * 30 + "deep")[:50] + "\n" + ("> " * 30 + "deep")[50:]),
        ("| a |\n|---|\n| " + "x" * 60 + " |", " a\n ────────────────────────────────────────────────\n"
         + " " + "x" * 48 + "\n " + "x" * 12),
    ],
)  # fmt: skip
def test_nothing_is_lost(text: str, shown: str) -> None:
    console = terminal()
    with Rendered(console) as screens:
        screens.push(text)
    lines = screen(written(console), 12).splitlines()
    assert [line.rstrip() for line in lines] == [line.rstrip() for line in shown.splitlines()]


def test_blocks_are_found_and_never_change_again() -> None:
    begins = blocks(REPLY)
    assert [REPLY[place:].split()[0] for place in begins] == ["#", "They", "1.", "|", "```python", "The"]
    for length in range(len(REPLY)):
        whole = REPLY[: REPLY.rfind("\n", 0, length) + 1]
        assert blocks(whole)[:-1] == begins[: max(0, len(blocks(whole)) - 1)]


def test_what_cannot_be_parsed_well_takes_little_time() -> None:
    for text in ("*" * 5000 + "x", "[" * 5000 + "x", "> " * 3000 + "x", "|a" * 900 + "\n" + "|-" * 900 + "\n"):
        lines = drawn(terminal(), text)
        assert sum(len(segment.text) for line in lines for segment in line) >= len(text) - len(lines) - 2
