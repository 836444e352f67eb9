"""Training as a person sees it: a live panel on a terminal, plain lines at sensible intervals anywhere else.

Comes in: the records of ``metrics.py``, one a step. Goes out: text on standard error, at most 80 columns wide. Nothing
that comes from data can steer the terminal: control characters are shown, never sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from whippet.report.figures import count, duration, percent, short, size
from whippet.report.metrics import value_of
from whippet.report.series import Series, thinned

WIDTH = 80
BARS = "▁▂▃▄▅▆▇█"
LINES_PER_RUN = 20
SECONDS_PER_LINE = 20.0
REDRAWS_PER_SECOND = 8.0
POINTS_KEPT = 1000
"""Losses behind the sparkline: enough for any width, few enough to draw at every step of a long run."""


class Display:
    """``with Display(total_steps) as display: display.step(record)``; ``note`` and ``sample`` print above the panel.

    Without a ``console`` it writes to standard error. ``clock`` gives seconds; tests pass their own.
    """

    def __init__(
        self, total_steps: int, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total_steps = total_steps
        self.console = console if console is not None else Console(stderr=True, highlight=False)
        self._width = min(WIDTH, self.console.width)
        self._clock = clock
        self._losses: list[float] = []
        self._stride = max(1, total_steps // POINTS_KEPT)
        self._seen: dict[str, Any] = {}
        self._drawn_at = self._line_at = -float("inf")
        self._line_step: int | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            # No thread redraws it: a step does, so training is never interrupted by its own display.
            self._live = Live(
                self._panel(), console=self.console, auto_refresh=False, redirect_stdout=False, transient=False
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._panel(), refresh=True)
            self._live.stop()
            self._live = None

    def step(self, record: Mapping[str, Any]) -> None:
        """Show the record of a step, or of an evaluation (``eval_loss``) that followed it."""
        for key, value in record.items():
            both = isinstance(value, Mapping) and isinstance(self._seen.get(key), Mapping)
            self._seen[key] = {**self._seen[key], **value} if both else value
        loss = value_of(record, "loss")
        if loss is not None and int(record["step"]) % self._stride == 0:
            self._losses.append(loss)
        if self._live is None:
            self._maybe_line(record)
        elif self._clock() - self._drawn_at >= 1 / REDRAWS_PER_SECOND:
            self._drawn_at = self._clock()
            self._live.update(self._panel(), refresh=True)

    def note(self, text: str) -> None:
        """A sentence above the panel: a checkpoint was written, a batch was halved."""
        if self._live is None:
            # A log wants its lines whole: rich's own wrapping would cut paths.
            self.console.print(Text(printable(text)), soft_wrap=True)
        else:
            self.console.print(Text(printable(text), overflow="fold"), width=self._width)

    def sample(self, prompt: str, text: str) -> None:
        """What the model now answers to ``prompt``."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("  ask", Text(_clipped(prompt, 400)))
        table.add_row("  answer", Text(_clipped(text, 1200), "green"))
        self.console.print(table, width=self._width)

    def _maybe_line(self, record: Mapping[str, Any]) -> None:
        step = int(record["step"])
        told = value_of(record, "eval_loss") is not None
        last = step >= self.total_steps
        if self._line_step is not None and not told and not last:
            far = step - self._line_step >= max(1, self.total_steps // LINES_PER_RUN)
            late = self._clock() - self._line_at >= SECONDS_PER_LINE
            if not far and not late:
                return
        self._line_at, self._line_step = self._clock(), step
        self.console.print(Text(line_of(record, self.total_steps)), soft_wrap=True)

    def _panel(self) -> RenderableType:
        step = int(self._seen.get("step", 0))
        time_left = value_of(self._seen, "time.eta_s")
        head = Table.grid(expand=False, padding=(0, 1))
        bar = ProgressBar(total=max(1, self.total_steps), completed=step, width=max(10, self._width - 44))
        done = step / max(1, self.total_steps)
        # An estimate that is not there yet leaves its place empty, so that nothing jumps when it comes.
        left = "done" if done >= 1 else f"{duration(time_left)} left" if time_left is not None else "starting"
        head.add_row(Text(f"step {step:,}/{self.total_steps:,}", "bold"), bar, Text(f"{done:4.0%}"), Text(left, "cyan"))
        return Group(head, self._loss_line(), self._figures())

    def _loss_line(self) -> Text:
        loss, evaluated = value_of(self._seen, "loss"), value_of(self._seen, "eval_loss")
        told = Text.assemble(("loss ", "dim"), (f"{_fixed(loss):<8}", "bold green"))
        ending = Text.assemble(("  eval ", "dim"), (_fixed(evaluated), "bold magenta")) if evaluated is not None else ""
        room = self._width - told.cell_len - (ending.cell_len if isinstance(ending, Text) else 0)
        return told.append(sparkline(self._losses, room), "green").append(ending)

    def _figures(self) -> Table:
        seen = self._seen
        speed, memory = count(value_of(seen, "time.tokens_per_s")), size(value_of(seen, "time.peak_bytes"))
        rate, norm = short(value_of(seen, "learning_rate")), short(value_of(seen, "grad_norm"))
        tokens, accuracy = count(value_of(seen, "tokens_seen")), percent(value_of(seen, "accuracy"))
        rows = [
            ("learning rate", rate, "tokens/s", speed, "memory", memory),
            ("gradient norm", norm, "tokens", tokens, "accuracy", accuracy),
        ]
        table = Table.grid(padding=(0, 2))
        for column in range(6):
            table.add_column(style="dim" if column % 2 == 0 else "", min_width=8 if column % 2 else None, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return table


def line_of(record: Mapping[str, Any], total_steps: int) -> str:
    """A record as one plain line of at most 80 columns; figures that are absent are left out."""
    step = f"step {int(record['step']):>{len(str(total_steps))}}/{total_steps}"
    figures = [
        ("loss {}", _fixed, "loss"),
        ("eval {}", _fixed, "eval_loss"),
        ("lr {}", short, "learning_rate"),
        ("norm {}", short, "grad_norm"),
        ("{} tok/s", count, "time.tokens_per_s"),
        ("{} left", duration, "time.eta_s"),
        ("{}", size, "time.peak_bytes"),
    ]
    told = [text.format(form(value)) for text, form, key in figures if (value := value_of(record, key)) is not None]
    line = step
    for part in told:
        if len(line) + 2 + len(part) <= WIDTH:
            line += "  " + part
    return line


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of the values in at most ``width`` characters; the tallest is the highest."""
    if width < 1 or not values:
        return ""
    shown = thinned(Series.of(range(len(values)), values), width).y
    low, high = float(shown.min()), float(shown.max())
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)


def printable(text: str) -> str:
    """``text`` with control characters in place of which their picture stands; new lines stay."""
    return "".join(c if c == "\n" or c.isprintable() else _picture(c) for c in text)


def _picture(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def _clipped(text: str, most: int) -> str:
    clean = printable(text.strip())
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _fixed(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"
