"""What was typed in earlier talks, at the arrow keys: lines of a file that only its owner can read.

Python's readline is what makes lines editable; where it is missing, nothing is kept.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MOST = 1000
"""Lines that are kept when a talk begins."""
MAX_BYTES = 1024 * 1024
"""Of the file, from its end, that are read."""


def history_file() -> Path:
    return Path.home() / ".local" / "state" / "whippet" / "chat_history"


class History:
    """The lines of ``file``, and those that are added; None: of this talk only. A file that cannot be used is told of,
    and does not stop a talk."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        try:
            import readline
        except ImportError:
            self._readline = self._file = None
            return
        self._readline = readline
        readline.set_auto_history(False)  # the answers to "call ...?" are no messages
        readline.clear_history()
        for line in self._read():
            readline.add_history(line)

    def add(self, line: str) -> None:
        """Remember a line, also for the talks to come."""
        if self._readline is None or not line.strip():
            return
        self._readline.add_history(line)
        self._write(line.encode("utf-8", "surrogateescape") + b"\n", os.O_APPEND)

    def _read(self) -> list[str]:
        if self._file is None:
            return []
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_BYTES))
                lines = file.read().decode("utf-8", "surrogateescape").split("\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
            return []
        kept = [line for line in lines if line][-MOST:]
        if len(kept) < len(lines) - 1:
            self._write("".join(f"{line}\n" for line in kept).encode("utf-8", "surrogateescape"), os.O_TRUNC)
        return kept

    def _write(self, raw: bytes, how: int) -> None:
        if self._file is None:
            return
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | how, 0o600)
            with open(descriptor, "wb") as file:
                self._file.chmod(0o600)  # one that was there before
                file.write(raw)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        print(f"what you type is not kept for the next talk: {self._file}: {error.strerror}", file=sys.stderr)
        self._file = None
