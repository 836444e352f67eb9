"""The loop of replies, calls and results; what goes wrong with a call is told to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_tools import FILE, scripted, tools_file

from whippet.chat.messages import Conversation, Message, ToolCall
from whippet.errors import UsageError
from whippet.infer.tool_loop import ID, Toolbox, called, converse, load_toolbox, with_ids

CALL = '<tool_call>\n{"name": "get_current_temperature", "arguments": {"location": "Paris, France"}}\n</tool_call>'
WEATHER = ToolCall("get_current_temperature", {"location": "Paris, France"}, "call00000")


SILENT = "{% for m in messages %}<s>{{ m.role }} {{ m.tool_calls if m.tool_calls else m.content }}</s>{% endfor %}"
"""A template that leaves out what is said beside a call, as Meta's do."""


def always(call: ToolCall) -> bool:
    return True


def echo(value: Any) -> Any:
    """Give it back.

    Args:
        value: Anything
    """
    return value


def fail(why: str) -> None:
    """Fail.

    Args:
        why: The reason
    """
    raise RuntimeError(why)


def odd(kind: int) -> Any:
    """Return what is no JSON.

    Args:
        kind: Which
    """
    loop: list[Any] = []
    loop.append(loop)
    return [object(), float("nan"), loop, "x" * 100_000, "\udcff"][kind]


def test_a_call_is_made_and_its_result_given_back(tmp_path: Path) -> None:
    """The Llama 3.3 card's example: the function, the call, its result as JSON, the answer."""
    model = scripted(tmp_path, [f"I look.\n{CALL}", "It is 22 °C."])
    toolbox = load_toolbox(tools_file(tmp_path))
    more = converse(model, "How warm is it in Paris?", toolbox, allow=always)
    assert more == [
        Message("assistant", "I look.", (WEATHER,)),
        Message("tool", "22.0", tool_call_id="call00000", name="get_current_temperature"),
        Message("assistant", "It is 22 °C."),
    ]
    (first, tools), (second, _) = model.asked  # type: ignore[attr-defined]
    assert first == [Message("user", "How warm is it in Paris?")] and second == [*first, *more[:2]]
    assert tools == toolbox.schemas and toolbox.names == ["get_current_temperature", "fail"]


def test_parallel_calls_in_the_order_of_the_reply(tmp_path: Path) -> None:
    asked: list[ToolCall] = []

    def some(call: ToolCall) -> bool:
        asked.append(call)
        return call.arguments["value"] != 2

    calls = "\n".join(f'<tool_call>{{"name": "echo", "arguments": {{"value": {i}}}}}</tool_call>' for i in (1, 2, 3))
    model = scripted(tmp_path, [calls, "Done."])
    more = converse(model, "?", Toolbox([echo]), allow=some)
    assert [call.arguments["value"] for call in asked] == [1, 2, 3]
    assert [message.tool_call_id for message in more[1:4]] == ["call00000", "call00001", "call00002"]
    assert [more[1].content, more[3].content] == ["1", "3"]
    assert json.loads(more[2].content) == {"error": "the user did not allow this call"}


def test_a_conversation_keeps_what_its_template_is_told(tmp_path: Path) -> None:
    template = tmp_path / "told.jinja"
    template.write_text("{{ mood }}" + SILENT)
    model = scripted(tmp_path, ["Hello."], str(template))
    heard: list[Any] = []
    stream = model.chat_stream
    model.chat_stream = lambda asked, **more: [heard.append(asked), stream(asked, **more)][1]  # type: ignore
    asked = Conversation((Message("user", "?"),), template_variables={"mood": "brief"})
    converse(model, asked, Toolbox([echo]), allow=always)
    assert heard[0].template_variables == {"mood": "brief"} and heard[0].tools == tuple(Toolbox([echo]).schemas)


def test_ids_are_nine_letters_or_digits_whatever_came_before() -> None:
    """Such as Mistral's templates take. Drawn ones differ from reply to reply, as what came before is not known."""
    reply = Message("assistant", "", tuple(ToolCall("echo", {}, one) for one in (None, "call_0123456789", "abcDEF123")))
    for before in (None, (), (reply,)):
        ids = [[call.id for call in with_ids(reply, before).tool_calls] for _ in range(2)]
        assert all(ID.fullmatch(str(one)) for one in ids[0]) and len(set(ids[0])) == 3
        assert (ids[0][2] == "abcDEF123") == (before != (reply,))
        assert (ids[0] == ids[1]) == (before is not None)


def test_rounds_are_bounded(tmp_path: Path) -> None:
    model = scripted(tmp_path, [CALL] * 4)
    more = converse(model, "?", load_toolbox(tools_file(tmp_path)), allow=always, rounds=3)
    assert [message.role for message in more] == ["assistant", "tool"] * 3 + ["assistant"]
    assert more[-1].tool_calls
    assert len({call.id for message in more[:-1] for call in message.tool_calls}) == 3


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("echo", {"value": "Köln"}), '"Köln"'),
        (ToolCall("echo", {"value": {"a": [1.5, None]}}), '{"a": [1.5, null]}'),
        (ToolCall("odd", {"kind": 4}), r'"\udcff"'),
        (ToolCall("no", {}), "there is no tool 'no'; there are: echo, odd, fail"),
        (ToolCall("echo", {}), "the argument value is missing"),
        (ToolCall("odd", {"kind": "x"}), "kind: wanted an integer, met 'x'"),
        (ToolCall("odd", {"kind": 9}), "IndexError: list index out of range"),
        (ToolCall("odd", {"kind": 0}), "what odd returned cannot be written as JSON"),
        (ToolCall("odd", {"kind": 1}), "what odd returned cannot be written as JSON"),
        (ToolCall("odd", {"kind": 2}), "what odd returned cannot be written as JSON"),
        (ToolCall("odd", {"kind": 3}), "has 100002 characters, more than 65536"),
        (ToolCall("fail", {"why": "no \ud800"}), "RuntimeError: no"),
    ],
)
def test_what_a_call_brings(call: ToolCall, told: str) -> None:
    result = Toolbox([echo, odd, fail]).call(call)
    result.encode()
    value = json.loads(result)
    assert result == told or told in value["error"]


def test_an_interrupt_in_a_function_is_no_result() -> None:
    def stop() -> None:
        """Stop."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Toolbox([stop]).call(ToolCall("stop", {}))


@pytest.mark.parametrize(
    ("template", "content", "roles"),
    [
        ("chatml", "Look.", ["assistant", "tool", "tool"]),
        ("llama-3.1", "", ["assistant", "tool", "assistant", "tool"]),
        ("llama-3.1", "Look.", ["assistant", "assistant", "tool", "assistant", "tool"]),
        ("mistral", "", ["assistant", "tool", "tool"]),
        ("silent", "", ["assistant", "tool", "tool"]),
        ("silent", "Look.", ["assistant", "assistant", "tool", "assistant", "tool"]),
    ],
)
def test_calls_are_told_as_the_template_can(template: str, content: str, roles: list[str], tmp_path: Path) -> None:
    """Several calls and a text in one turn, where the template has room for them, else in more turns."""
    if template == "silent":
        template = str(tmp_path / "silent.jinja")
        Path(template).write_text(SILENT)
    model = scripted(tmp_path, [], template)
    calls = tuple(ToolCall("echo", {"value": i}, identity) for i, identity in enumerate(("x", None)))
    before = [Message("user", "?")]
    more = called(before, Message("assistant", content, calls), Toolbox([echo]), always, model.renderer)
    assert [message.role for message in more] == roles
    assert "".join(message.content for message in more if message.role == "assistant") == content
    assert [call.arguments["value"] for message in more for call in message.tool_calls] == [0, 1]
    assert [message.tool_call_id for message in more if message.role == "tool"] == ["call00000", "call00001"]
    model.renderer.prompt_ids([*before, *more], Toolbox([echo]).schemas)


def test_files_of_tools(tmp_path: Path) -> None:
    for name, text, complaint in (
        ("none.py", "x = 1", "defines no public function with a docstring"),
        ("broken.py", "def", "cannot be run: SyntaxError"),
        ("raises.py", "1 / 0", "cannot be run: ZeroDivisionError: division by zero"),
        ("leaves.py", "raise SystemExit(3)", "cannot be run: SystemExit: 3"),
        ("untyped.py", 'def f(x):\n    """Do."""', "the tool f: argument x has no type"),
        ("notes.txt", FILE, "is no Python file"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UsageError, match=complaint):
            load_toolbox(path)
    with pytest.raises(UsageError, match="is no Python file"):
        load_toolbox(tmp_path / "absent.py")
    with pytest.raises(UsageError, match="two tools are called echo"):
        Toolbox([echo, echo])
