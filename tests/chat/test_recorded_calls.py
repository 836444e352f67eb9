"""The tool calls of real data: each conversation is rendered with its tools, and each turn read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_chat import byte_tokenizer
from helpers_data import shared_bytes

from whippet.chat.messages import Conversation, Message
from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data.turns import parse_tools, parse_turn

FILES = {
    "glaive_toolcall_en_demo.json.gz": (300, 211),
    "glaive_toolcall_zh_demo.json.gz": (300, 216),
    "reason_tool_use_demo_50.jsonl.gz": (50, 68),
}
"""Records and calls of each."""
CHATML = ("<|im_start|>", "<|im_end|>")


def records(name: str) -> Iterator[Conversation]:
    raw = shared_bytes("instruct", "llamafactory", name).decode()
    rows = [json.loads(line) for line in raw.splitlines()] if ".jsonl" in name else json.loads(raw)
    for row in rows:
        turns = row.get("messages") or row["conversations"]
        messages = tuple(parse_turn(turn, f"turn {i}") for i, turn in enumerate(turns))
        yield Conversation(messages, parse_tools(row["tools"]))


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    byte_tokenizer(tmp_path, adds_bos=True, extra=CHATML)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return make_renderer(Tokenizer.load(tmp_path), "chatml")


@pytest.mark.parametrize("name", FILES)
def test_calls_of_real_conversations_come_back(name: str, renderer: Renderer) -> None:
    found = list(records(name))
    assert (len(found), sum(len(m.tool_calls) for one in found for m in one.messages)) == FILES[name]
    for one in found:
        tokens = renderer.render(one)
        for turn, message in enumerate(one.messages):
            if message.role == "assistant":
                said = renderer.tokenizer.decode(tokens.ids[tokens.turns == turn].tolist())
                parsed = renderer.read(said, one.tools)
                assert parsed.trouble is None
                content = message.content.rstrip() if message.tool_calls else message.content
                assert parsed.message == Message("assistant", content, message.tool_calls)
