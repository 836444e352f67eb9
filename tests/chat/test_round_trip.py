"""What a template writes for an assistant's message is read back as that message, in every form."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers_calls import TOOLS, replies
from helpers_chat import byte_tokenizer
from helpers_data import shared

from whippet.chat.messages import Conversation, Message
from whippet.chat.render import Renderer, make_renderer
from whippet.chat.template import template_names
from whippet.chat.tokenizer import Tokenizer

LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
CHATML = ("<|im_start|>", "<|im_end|>")
MISTRAL = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
           "[/TOOL_RESULTS]")  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A template, and what it has room for: ids, several calls in a turn, text beside them. ``source``: one of ours,
    or a file of ../shared."""

    source: str
    tokens: tuple[str, ...]
    ids: bool = False
    several: bool = False
    beside: bool = False
    system: str = "Be brief."


FORMS = {
    "chatml": Form("chatml", CHATML, several=True, beside=True),
    "mistral": Form("mistral", MISTRAL, ids=True, several=True),
    "llama-3.1": Form("llama-3.1", LLAMA),
    "llama-3.3": Form("llama-3.3", LLAMA, several=True),
    "llama-3.3 ipython": Form("llama-3.3", LLAMA, system="Environment: ipython"),
    "llama-3.3 tagged": Form("llama-3.3", LLAMA, system="Write <function=name>{...}</function>"),
    "Meta's 3.1": Form("meta-llama-Llama-3.1-8B-Instruct", LLAMA),
    "Meta's 3.2": Form("meta-llama-Llama-3.2-3B-Instruct", LLAMA),
    "Meta's 3.3": Form("meta-llama-Llama-3.3-70B-Instruct", LLAMA),
    "Qwen 2.5": Form("Qwen-Qwen2.5-7B-Instruct", CHATML, several=True, beside=True),
    "Hermes 3": Form("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", CHATML, several=True),
    "Mistral Nemo": Form("mistralai-Mistral-Nemo-Instruct-2407", MISTRAL, ids=True, several=True, system=""),
}


def renderer_of(form: Form, folder: Path) -> Renderer:
    byte_tokenizer(folder, adds_bos=True, extra=form.tokens)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    tokenizer = Tokenizer.load(folder)
    source = form.source
    if source not in template_names():
        source = str(shared("chat_templates", "llama.cpp", f"{source}.jinja"))
    return make_renderer(tokenizer, source)


def read_back(renderer: Renderer, chat: tuple[Message, ...], message: Message) -> tuple[str, Message]:
    """What the template writes for ``message``, and what it is read as."""
    tokens = renderer.render(Conversation((*chat, message), tuple(TOOLS)))
    said = renderer.tokenizer.decode(tokens.ids[tokens.turns == len(chat)].tolist())
    return said, renderer.parse(said, TOOLS)


@pytest.mark.parametrize("number", [80, pytest.param(900, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", FORMS)
def test_messages_come_back(name: str, number: int, tmp_path: Path) -> None:
    """The long draw is 10,800 messages; the six forms of our own templates alone are 5,400."""
    form = FORMS[name]
    renderer = renderer_of(form, tmp_path)
    chat = (*([Message("system", form.system)] if form.system else []), Message("user", "?"))
    for message in replies(random.Random(name), number, several=form.several, beside=form.beside):
        if not form.ids:
            calls = tuple(replace(call, id=None) for call in message.tool_calls)
            message = replace(message, tool_calls=calls)
        said, again = read_back(renderer, chat, message)
        # Templates of Mistral put a space before a text.
        again = replace(again, content=again.content.removeprefix(" "))
        assert again == message, said
        assert [list(call.arguments) for call in again.tool_calls] == [
            list(one.arguments) for one in message.tool_calls
        ]
        assert repr(again) == repr(message), said  # 1 is not True, nor 1.0
