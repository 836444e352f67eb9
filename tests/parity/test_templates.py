"""Rendered text equals transformers', for the real templates and ours, over generated conversations.

Needs transformers (an extra) and, for the real templates, ../shared/data.
"""

from __future__ import annotations

import json
import random
from datetime import datetime
from typing import Any

import pytest
from helpers_chat import conversations, transformers_render
from helpers_data import SHARED, shared, shared_bytes

from whippet.chat.messages import Conversation, Message
from whippet.chat.template import ChatTemplate, named_template, template_names
from whippet.errors import DataError

pytest.importorskip("transformers")

FOLDER = ("chat_templates", "llama.cpp")
REAL = tuple(sorted(path.stem for path in SHARED.joinpath(*FOLDER).glob("*.jinja"))) or ("none",)
TOKENIZERS = ("gemma", "mistral-v0.3-instruct", "phi-3-mini", "qwen2.5", "smollm2", "zephyr")
DRAWS = 300
VARIABLES = {
    "fireworks-ai-llama-3-firefunction-v2": {"functions": "[]", "datetime": "2025-03-09"},
    "meta-llama-Llama-3.3-70B-Instruct": {"date_string": "09 Mar 2025", "tools_in_user_message": False},
}
"""What a template looks up besides; without them Firefunction's refuses every chat, in transformers too."""
NOW = datetime(2025, 3, 9, 12, 30)


def compare(source: str, seed: int, draws: int = DRAWS, **variables: object) -> int:
    """Render both ways; where transformers refuses, so must we. How many were rendered."""
    template = ChatTemplate(source, name="real", bos_token="<s>", eos_token="</s>", variables=variables)
    given = {"bos_token": "<s>", "eos_token": "</s>"} | variables
    rendered = 0
    for conversation in conversations(random.Random(seed), draws):
        for prompt in (False, True):
            expected = transformers_render(source, conversation, prompt, NOW, **given)
            if expected is None:
                with pytest.raises(DataError, match=r"chat template real (cannot render|fails on) this conversation: "):
                    template.render(conversation, add_generation_prompt=prompt, now=NOW)
                continue
            assert template.render(conversation, add_generation_prompt=prompt, now=NOW) == expected
            rendered += 1
    return rendered


def own_template(folder: str) -> str:
    """The template that comes with a tokenizer."""
    if folder == "smollm2":
        return shared("tokenizers", folder, "chat_template.jinja").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(shared_bytes("tokenizers", folder, "tokenizer_config.json"))
    return str(config["chat_template"])


def real_template(name: str) -> str:
    return shared(*FOLDER, f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REAL)
def test_real_template(name: str) -> None:
    assert compare(real_template(name), seed=1, **VARIABLES.get(name, {})) >= 100


@pytest.mark.parametrize("folder", TOKENIZERS)
def test_template_of_a_tokenizer(folder: str) -> None:
    assert compare(own_template(folder), seed=2) >= 100


@pytest.mark.parametrize("name", template_names())
def test_named_template(name: str) -> None:
    assert compare(named_template(name), seed=3, draws=60) >= 10


def keeps_all(chat: Conversation) -> bool:
    """Whether Mistral's own template shows the whole chat: it writes the tools once more before an earlier question
    that is like the last one, and drops the system message unless a question is last, and text beside calls."""
    users = [message.content for message in chat.messages if message.role == "user"]
    return (
        (users[-1] not in users[:-1] or not chat.tools)
        and (chat.messages[0].role != "system" or chat.messages[-1].role == "user")
        and not any(message.tool_calls and message.content for message in chat.messages)
    )


@pytest.mark.parametrize(
    ("name", "theirs", "bos", "fits"),
    [
        ("llama-3.1", "meta-llama-Llama-3.1-8B-Instruct", "<s>", lambda chat: True),
        ("llama-3.1", "meta-llama-Llama-3.3-70B-Instruct", "<s>", lambda chat: True),
        ("mistral", "mistral-v0.3-instruct", "<s>", keeps_all),
        ("gemma", "google-gemma-2-2b-it", "<s>", lambda chat: True),
        ("phi-3", "phi-3-mini", "", lambda chat: not chat.tools),
        ("zephyr", "zephyr", "", lambda chat: not chat.tools),
        ("chatml", "smollm2", "", lambda chat: chat.messages[0].role == "system" and not chat.tools),
    ],
)
def test_a_named_template_is_that_of_its_family(name: str, theirs: str, bos: str, fits: Any) -> None:
    """Wherever the family's own renders; some of ours take more (a system message for Gemma). Whether BOS comes first
    is the tokenizer's affair, so it is left out where the family's template leaves it out. SmolLM puts a system message
    of its own before a chat without one, and Phi, Zephyr and SmolLM drop tools."""
    source = own_template(theirs) if theirs in TOKENIZERS else real_template(theirs)
    given = {"bos_token": bos, "eos_token": "</s>"}
    ours, real = (ChatTemplate(one, name=name, **given) for one in (named_template(name), source))
    compared = 0
    for chat in conversations(random.Random(8), 2 * DRAWS):
        for turns in (chat, Conversation(chat.messages[:-1], chat.tools)):
            beside_call = any(message.tool_calls and message.content for message in turns.messages)
            if not turns.messages or not fits(turns) or beside_call:
                continue
            prompt = turns is not chat
            try:
                expected = real.render(turns, add_generation_prompt=prompt)
            except DataError:
                continue
            assert ours.render(turns, add_generation_prompt=prompt) == expected
            compared += 1
    assert compared >= DRAWS


def test_llama_3_is_llama_3_1_without_its_dates() -> None:
    """Llama 3's own template is not in ../shared; its successor's differs by a preamble (and by tools)."""
    ours = ChatTemplate(named_template("llama-3"), name="ours", bos_token="<s>")
    real = ChatTemplate(real_template("meta-llama-Llama-3.1-8B-Instruct"), name="real", bos_token="<s>")
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    compared = 0
    for chat in conversations(random.Random(9), 4 * DRAWS):
        if chat.messages[0].role == "system" and not chat.tools:
            assert ours.render(chat) == real.render(chat).replace(dates, "", 1)
            compared += 1
    assert compared >= DRAWS


def test_generation_marks_equal_transformers() -> None:
    marked = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</end>{% endgeneration %}"
        "{% else %}{{ m.content }}</end>{% endif %}\n{% endfor %}"
    )
    plain = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert compare(marked, seed=4, draws=40) >= 40
    chat = Conversation((Message("user", "a</end>"), Message("assistant", "b"), Message("assistant", "")))
    with_marks = ChatTemplate(marked, name="marked").render_marked(chat)
    assert with_marks.text == ChatTemplate(plain, name="plain").render(chat)
    assert [with_marks.text[start:end] for start, end in with_marks.marks] == ["b</end>", "</end>"]
