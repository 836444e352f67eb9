"""Replies as markdown while they stream: what is complete is printed for good, what still grows is drawn anew below it.

Complete is every block (a paragraph, a list, a table, a code block) that another one follows. Of one that is longer
than the screen only the end is drawn while it grows. Nothing that a model says is lost: tags of HTML, special tokens,
backslashes, addresses and ends of lines stay as they are, and a block of which the picture would leave something out is
shown as its text.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import accumulate, pairwise
from typing import Self

from markdown_it import MarkdownIt
from rich import markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment, SegmentLines
from rich.table import Table
from rich.text import Text

from whippet.cli.asking import visible
from whippet.cli.chat_screen import speed
from whippet.infer.stream import Stream

OFF = ("reference", "image", "escape", "entity")
"""What would hide or change words."""
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(OFF)
BLOCKS = MarkdownIt("commonmark", {"html": False}).enable("table").disable([*OFF, "inline"])
"""Finds blocks only, which takes little time."""
FRAME = 0.1
"""Seconds from one picture of the growing block to the next; more if it takes long to draw."""
SHARE = 5
"""Drawing may take one part in so many of the time."""
Lines = list[list[Segment]]


class Rendered:
    """One reply as markdown, then its speed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._printed = False
        self._due = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self._growing)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Also the end of a reply that failed: what came is printed."""
        self._settle(complete=True)
        self._live.stop()

    def push(self, piece: str) -> None:
        self._text += visible(piece)
        began = time.monotonic()
        if began >= self._due:
            self._settle(complete=False)
            self._live.refresh()
            now = time.monotonic()
            self._due = now + max(FRAME, SHARE * (now - began))

    def finish(self, stream: Stream) -> None:
        """Print the rest, and how quickly it came."""
        self._settle(complete=True)
        self._console.print(speed(stream), style="dim")

    def _settle(self, *, complete: bool) -> None:
        """Print for good what nothing that follows can change: all blocks but the last one, or all if the text is
        complete. The last line that came may not be."""
        text = self._text
        begins = blocks(text if complete else text[: text.rfind("\n") + 1])
        ends = [*begins[1:], *[len(text)] * complete]
        for start, end in pairwise([0, *ends]):
            self._text = text[end:]
            if lines := drawn(self._console, text[start:end]):
                self._console.print(SegmentLines([[]] * self._printed + lines, new_lines=True), end="")
                self._printed = True

    def _growing(self) -> SegmentLines:
        lines = drawn(self._console, self._text)
        most = max(1, self._console.height - 2)
        return SegmentLines(([[]] * self._printed + lines)[-most:] if lines else [], new_lines=True)


def blocks(text: str) -> list[int]:
    """Where the blocks of ``text`` begin."""
    first = [token.map[0] for token in BLOCKS.parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    return [starts[line] for line in first]


def drawn(console: Console, text: str) -> Lines:
    """Blocks as lines of the terminal's width, without blank ones around them."""
    picture = Picture(text)
    lines = console.render_lines(picture, pad=False)
    told = "".join(segment.text for line in lines for segment in line)
    if not told.strip() or _marks(text) - _marks(told + picture.languages):
        lines = console.render_lines(Text(text, overflow="fold"), pad=False)
    filled = [place for place, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
    return lines[filled[0] : filled[-1] + 1] if filled else []


def _marks(text: str) -> Counter[str]:
    """Letters and digits, which markdown has no other use for than to be shown."""
    return Counter(filter(str.isalnum, text))


class Heading(markdown.Heading):
    """At the left, as all else."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        yield text


class TableElement(markdown.TableElement):
    """Words that are wider than their column go on in the next line; they would be cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            for column in table.columns:
                column.overflow = "fold"
            yield table


class Picture(markdown.Markdown):
    """A text as rich draws it, but line by line as it was written. ``languages``: what the code blocks say they are in,
    which only their colours show."""

    elements = markdown.Markdown.elements | {"heading_open": Heading, "table_open": TableElement}

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.parsed = PARSER.parse(text)
        self.languages = "".join(token.info for token in self.parsed if token.type == "fence")
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
