"""An example as a person sees it: its tokens, those that carry loss set apart.

On a terminal with colours each trained token has a green ground, two shades in turn so that borders show, paler for a
loss weight below 1; the others are dim. Elsewhere a trained token stands in brackets, with its weight unless that is 1.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.style import Style
from rich.text import Text

from whippet.chat.tokenizer import Tokenizer
from whippet.data.weigh import Weighed

SHADES = (Style(color="black", bgcolor="green3"), Style(color="black", bgcolor="chartreuse3"))
PALE = (Style(color="black", bgcolor="khaki3"), Style(color="black", bgcolor="light_goldenrod2"))
REST = Style(dim=True)
OPEN, CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class Piece:
    """The text that a token completes, and the token's loss weight. Tokens that end inside a character have none."""

    id: int
    text: str
    weight: float


def pieces(example: Weighed, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The tokens of ``example`` as text; together they are the text that was rendered."""
    stream = tokenizer.stream()
    last = len(example) - 1
    for place, (token_id, weight) in enumerate(zip(example.ids.tolist(), example.weights.tolist(), strict=True)):
        text = stream.push(token_id)
        yield Piece(token_id, text + stream.close() if place == last else text, float(weight))


def print_example(example: Weighed, name: str, tokenizer: Tokenizer, console: Console | None = None) -> None:
    """Print to standard output, in colour where that is wanted (a terminal, and no ``NO_COLOR``)."""
    console = console or Console(highlight=False, markup=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    console.print(f"── {name}  {len(example):,} tokens, {example.num_trained:,} trained", style="bold")
    shown = Text()
    for place, piece in enumerate(pieces(example, tokenizer)):
        text = visible(piece.text)
        if not piece.weight:
            shown.append(text, REST if coloured else None)
        elif coloured:
            shown.append(text, (SHADES if piece.weight >= 1 else PALE)[place % 2])
        else:
            weight = "" if piece.weight == 1 else f"×{piece.weight:g}"
            shown.append(f"{OPEN}{text}{CLOSE}{weight}")
    console.print(shown)
    console.print()


def print_example_as_json(example: Weighed, where: str, tokenizer: Tokenizer) -> None:
    """One line: where the record stands, and its tokens."""
    found = list(pieces(example, tokenizer))
    tokens = [{"id": piece.id, "text": piece.text, "weight": piece.weight} for piece in found]
    text = "".join(piece.text for piece in found)
    print(json.dumps({"where": where, "tokens": tokens, "text": text}, ensure_ascii=False))


def visible(text: str) -> str:
    """Line ends shown before they happen; control characters as pictures, so that data cannot steer a terminal."""
    shown = []
    for character in text:
        if character == "\n":
            shown.append("↵\n")
        elif ord(character) < 0x20:
            shown.append(chr(0x2400 + ord(character)))
        elif unicodedata.category(character) in ("Cc", "Cf") and character not in "\u200c\u200d":
            shown.append(f"\\u{ord(character):04x}")
        else:
            shown.append(character)
    return "".join(shown)
