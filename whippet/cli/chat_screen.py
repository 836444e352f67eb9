"""How a chat looks: replies wrapped at words as they stream, two columns for a comparison, plain lines in a pipe.

What a model says is shown as it is, never as markup: whoever tunes a model wants to see its very words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Self

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from whippet.cli.asking import visible
from whippet.infer.stream import Stream

WORDS = re.compile(r"\n|[^\S\n]+|\S+")


class Wrapped:
    """Prints one reply as it comes, breaking lines between words at the terminal's width, then its speed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._pending = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def push(self, piece: str) -> None:
        """Print all but the newest word, which may not be complete."""
        *whole, self._pending = WORDS.findall(self._pending + visible(piece))
        for word in whole:
            self._print(word)

    def finish(self, stream: Stream) -> None:
        """Print the rest, and how quickly it came."""
        if self._pending:
            self._print(self._pending)
        if self._column:
            self._console.print()
        self._console.print(speed(stream), style="dim")

    def _print(self, word: str) -> None:
        width = cell_len(word)
        if word == "\n":
            self._column = 0
        elif self._column and self._column + width > self._console.width:
            self._console.print()
            word = "" if word.isspace() else word
            self._column = cell_len(word)
        else:
            self._column += width
        self._console.out(word, end="", highlight=False)


class SideBySide:
    """One column for each of several replies, which come one after the other; redrawn as they grow."""

    def __init__(self, console: Console, labels: Sequence[str]) -> None:
        self._console, self._labels = console, labels
        self._texts = [""]
        self._notes: list[str] = []
        self._live = Live(console=console, transient=True, refresh_per_second=12, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Replace the moving picture by the whole one: that one may be longer than the screen."""
        self._live.stop()
        self._console.print(self._table())

    def push(self, piece: str) -> None:
        """The next piece of the reply that grows."""
        self._texts[-1] += visible(piece)
        self._live.update(self._table())

    def finish(self, stream: Stream) -> None:
        """That reply is complete; pieces from now on are of the next one."""
        self._notes.append(speed(stream))
        self._texts.append("")

    def _table(self) -> Table:
        table = Table(expand=True, show_footer=True, border_style="dim", footer_style="dim")
        for label, note in zip_longest(self._labels, self._notes, fillvalue=""):
            table.add_column(Text(label), footer=note, ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text, _ in zip(self._texts, self._labels, strict=False)))
        return table


def speed(stream: Stream) -> str:
    """Such as ``87 tokens, 41 tokens/s``, and why the reply ended if the model did not end it."""
    parts = [f"{len(stream.ids)} tokens"]
    if stream.tokens_per_second:
        parts.append(f"{stream.tokens_per_second:.0f} tokens/s")
    if stream.finish != "stop":
        parts.append("stopped by you" if stream.finish is None else "cut at the limit of tokens")
    return ", ".join(parts)
