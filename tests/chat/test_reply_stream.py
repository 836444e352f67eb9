"""Growing replies: what is shown is the beginning of the message that they turn out to be, and comes without delay."""

from __future__ import annotations

import random
import time
from functools import partial

import pytest
from helpers_replies import jumbles

from whippet.chat.messages import Message, ToolCall
from whippet.chat.replies import read_reply
from whippet.chat.reply_stream import ReplyStream

CALL = '{"name": "f", "arguments": {"a": 1}}'


def shown_at_once(text: str, names: set[str] | None = None) -> str:
    """What is shown of ``text`` before its end is known, where it comes a character at a time."""
    stream = ReplyStream(partial(read_reply, names=names), names)
    return "".join(map(stream.push, text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Hello there, you.", "Hello there, you."),
        (" Hello \n\n", " Hello"),
        ("a < b and <tool", "a < b and"),
        ("a <tool_call> tag", "a <tool_call> tag"),
        (f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see."),
        (f"Let me see.\n<tool_call>{CALL}</tool_call> and more", "Let me see."),
        ("Look: [TOOL_CALLS]", "Look:"),
        ("Look: <|python_tag|>print(1)", "Look:"),
        ("Now <function=f>{}</function>", "Now"),
        ("Now <function=f> is a tag", "Now <function=f> is a tag"),
        (CALL, ""),
        (f"\n {CALL}", ""),
        ('{"answer": 1}', '{"answer": 1}'),
        ('{"named": 1}', '{"named": 1}'),
        ('{\n  "name"', ""),
        ("[link](there)", "[link](there)"),
        ("[1, 2]", "[1, 2]"),
        ("[f(x=1)]", ""),
        ("[f", ""),
        ("[" + "a" * 200, "[" + "a" * 200),
        ("<tool_call>" + " " * 60, ""),
        ("<tool_call>" + " " * 100, "<tool_call>"),
        ("<think>no <tool_call>{</thi", "<think>no <tool_call>{"),
        ("<think>yes</think>\n\nSo", "<think>yes</think>\n\nSo"),
        (f"<think>yes</think>\n\n{CALL}", "<think>yes</think>"),
        ("<thick> as", "<thick> as"),
    ],
)
def test_what_is_shown_before_the_end(text: str, shown: str) -> None:
    assert shown_at_once(text) == shown


def test_known_names_let_a_later_line_be_a_call() -> None:
    text = f"I look.\n{CALL}"
    assert shown_at_once(text) == text and shown_at_once(text, {"f"}) == "I look."
    assert shown_at_once("I look: [f(x)]", {"f"}) == "I look: [f(x)]"
    assert shown_at_once('Here:\n{\n  "city": 1', {"f"}) == 'Here:\n{\n  "city": 1'


def test_the_end_brings_the_message() -> None:
    stream = ReplyStream(read_reply)
    assert [stream.push(piece) for piece in ("Let", " me. ", "<tool_call>", CALL, "</tool_call>")] == [
        "Let", " me.", "", "", ""]  # fmt: skip
    assert stream.close() == Message("assistant", "Let me.", (ToolCall("f", {"a": 1}),)) and stream.shown == "Let me."
    assert stream.trouble is None
    broken = ReplyStream(read_reply)
    assert broken.push("<tool_call>{") == "" and broken.close() == Message("assistant", "<tool_call>{")
    assert "JSON is broken" in str(broken.trouble)
    assert ReplyStream(lambda text: Message("assistant", text)).close() == Message("assistant")


@pytest.mark.parametrize("number", [3_000, pytest.param(300_000, marks=pytest.mark.long)])
def test_nothing_is_shown_that_is_not_said(number: int) -> None:
    """However a reply is cut into pieces, the same is shown of it, and that begins the message."""
    draw = random.Random(number)
    held = 0
    for text in jumbles(number):
        for names in (None, {"f"}):
            stream = ReplyStream(partial(read_reply, names=names), names)
            rest, shown = text, ""
            while rest:
                size = draw.randint(1, 6)
                shown += stream.push(rest[:size])
                rest = rest[size:]
                assert text.startswith(shown)
            assert shown == stream.shown == shown_at_once(text, names) and stream.text == text
            message = stream.close()
            assert message.content.startswith(shown)
            held += bool(message.tool_calls)
    assert held > number / 200


def test_long_replies_are_split_quickly() -> None:
    """The time of a piece does not grow with the reply."""
    began = time.process_time()
    for first, unit in (
        ("", "word "),
        ("", "<tool_call> "),
        ("", "[f"),
        ("", "\n{"),
        ("", "<think>"),
        ("", CALL),
        ("x", " " * 10),
    ):
        stream = ReplyStream(read_reply, {"f"})
        stream.push(first)
        for _ in range(20_000):
            stream.push(unit)
        stream.close()
    assert time.process_time() - began < 5
