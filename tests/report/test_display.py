"""The display: a panel on a terminal, few plain lines elsewhere, never wider than 80, never steered by data."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from helpers_runs import records
from rich.console import Console

from whippet.report.display import Display, line_of, printable, sparkline

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def console(*, terminal: bool, width: int = 80, **options: Any) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=width, highlight=False, **options), out


class Clock:
    def __init__(self, stride: float) -> None:
        self.now, self.stride = 0.0, stride

    def __call__(self) -> float:
        self.now += self.stride
        return self.now


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_panel_shows_every_figure_within_80_columns(width: int) -> None:
    screen, out = console(terminal=True, width=width)
    with Display(40, screen, clock=Clock(1)) as display:
        for record in records(40)[:34]:
            display.step(record)
    text = ESCAPES.sub("", out.getvalue())
    assert max(len(line) for line in re.split(r"[\n\r]", text)) <= min(80, width)
    last = text[text.rindex("step ") :]
    for figure in (
        "30/40",
        "75%",
        "left",
        "1.2",
        "learning rate",
        "5e-5",
        "gradient norm",
        "8,192",
        "3 GiB",
        "122,880",
    ):
        assert figure in last, figure
    assert "eval 1.29" in last and "▁" in last and "█" in last


def test_no_terminal_gives_about_twenty_lines_and_the_first_and_last() -> None:
    screen, out = console(terminal=False)
    with Display(1000, screen, clock=Clock(0.001)) as display:
        for step in range(1, 1001):
            display.step({"step": step, "loss": 1.0})
    lines = out.getvalue().splitlines()
    assert 15 <= len(lines) <= 25 and "\x1b" not in out.getvalue()
    assert lines[0].startswith("step    1/1000") and lines[-1].startswith("step 1000/1000")


def test_slow_steps_are_told_by_time() -> None:
    screen, out = console(terminal=False)
    with Display(100_000, screen, clock=Clock(15)) as display:
        for step in range(1, 21):
            display.step({"step": step, "loss": 1.0})
    assert len(out.getvalue().splitlines()) >= 10


def test_an_evaluation_is_always_told() -> None:
    screen, out = console(terminal=False)
    with Display(1000, screen, clock=Clock(0)) as display:
        display.step({"step": 1, "loss": 2.0})
        display.step({"step": 2, "loss": 2.0})
        display.step({"step": 2, "eval_loss": 1.5})
    assert [line.split("/1000  ")[1] for line in out.getvalue().splitlines()] == ["loss 2.0000", "eval 1.5000"]


def test_lines_never_exceed_80_columns() -> None:
    record = records(40)[30] | {"step": 123456, "eval_loss": 1.0, "loss": 12345.678901, "grad_norm": 1.2345e-7}
    assert len(line_of(record, 1234567)) <= 80
    assert "3:20 left" in line_of({"step": 1, "time": {"eta_s": 200}}, 9)


@pytest.mark.parametrize("terminal", [True, False])
def test_data_cannot_steer_the_terminal(terminal: bool) -> None:
    screen, out = console(terminal=terminal, no_color=True)
    hostile = "\x1b]0;owned\x07\x1b[2J\rx\x9b31m[bold]b[/bold]\u202egnp"
    with Display(1, screen) as display:
        display.note(hostile)
        display.sample(hostile, hostile + "\nsecond")
    text = ESCAPES.sub("", out.getvalue())
    assert not set(text) & set("\x1b\x07\x9b\u202e") and "\x1b[2J" not in out.getvalue()
    assert "[bold]b[/bold]" in text and "second" in text and "␛]0;owned" in text


def test_a_long_path_in_a_log_stays_whole() -> None:
    screen, out = console(terminal=False)
    path = "/a/very/long/path" * 12
    with Display(1, screen) as display:
        display.note(f"written to {path}")
    assert path in out.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen, out = console(terminal=True)
    with Display(2, screen) as display:
        display.step(records(2)[1])
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", out.getvalue())


def test_it_goes_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(1) as display:
        display.step({"step": 1, "loss": 1.0})
    out, err = capsys.readouterr()
    assert out == "" and "loss 1.0000" in err


def test_the_terminal_is_given_back_after_an_error() -> None:
    screen, out = console(terminal=True)
    with pytest.raises(KeyError), Display(3, screen) as display:
        display.step({"step": 1, "loss": 1.0})
        raise KeyError
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1


def test_sparkline() -> None:
    assert sparkline([3, 2, 1], 10) == "█▅▁" or sparkline([3, 2, 1], 10) == "█▄▁"
    assert len(sparkline(range(5000), 40)) == 40 and sparkline([], 5) == "" and sparkline([2.0, 2.0], 5) == "▁▁"


def test_printable_keeps_letters_of_every_script() -> None:
    assert printable("naïve 日本 🐕\n\tend") == "naïve 日本 🐕\n␉end"
