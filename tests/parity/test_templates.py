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
from helpers_data import shared, shared_bytes

from whippet.chat.messages import Conversation, Message
from whippet.chat.template import ChatTemplate, named_template, template_names
from whippet.errors import DataError

pytest.importorskip("transformers")

FOLDER = ("chat_templates", "llama.cpp")
REAL = (
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "Qwen-Qwen2.5-7B-Instruct",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "llama-cpp-deepseek-r1",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "google-gemma-2-2b-it",
    "microsoft-Phi-3.5-mini-instruct",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
)
NOW = datetime(2025, 3, 9, 12, 30)


def compare(source: str, draws: int, seed: int) -> int:
    """Render both ways; where transformers refuses, so must we. How many were rendered."""
    template = ChatTemplate(source, name="real", bos_token="<s>", eos_token="</s>")
    rendered = 0
    for conversation in conversations(random.Random(seed), draws):
        for prompt in (False, True):
            expected = transformers_render(source, conversation, prompt, NOW, bos_token="<s>", eos_token="</s>")
            if expected is None:
                with pytest.raises(DataError):
                    template.render(conversation, add_generation_prompt=prompt, now=NOW)
                continue
            assert template.render(conversation, add_generation_prompt=prompt, now=NOW) == expected
            rendered += 1
    return rendered


@pytest.mark.parametrize("name", REAL)
def test_real_template(name: str) -> None:
    source = shared(*FOLDER, f"{name}.jinja").read_text(encoding="utf-8")
    assert compare(source, draws=60, seed=1) >= 10


@pytest.mark.parametrize("folder", ["smollm2", "zephyr", "qwen2.5", "phi-3-mini", "mistral-v0.3-instruct"])
def test_template_of_a_tokenizer(folder: str) -> None:
    if folder == "smollm2":
        source = shared("tokenizers", folder, "chat_template.jinja").read_text(encoding="utf-8")
    else:
        config: dict[str, Any] = json.loads(shared_bytes("tokenizers", folder, "tokenizer_config.json"))
        source = config["chat_template"]
    assert compare(source, draws=60, seed=2) >= 10


@pytest.mark.parametrize("name", template_names())
def test_named_template(name: str) -> None:
    assert compare(named_template(name), draws=60, seed=3) >= 10


def test_generation_marks_equal_transformers() -> None:
    marked = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</end>{% endgeneration %}"
        "{% else %}{{ m.content }}</end>{% endif %}\n{% endfor %}"
    )
    plain = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert compare(marked, draws=40, seed=4) >= 40
    chat = Conversation((Message("user", "a</end>"), Message("assistant", "b"), Message("assistant", "")))
    with_marks = ChatTemplate(marked, name="marked").render_marked(chat)
    assert with_marks.text == ChatTemplate(plain, name="plain").render(chat)
    assert [with_marks.text[start:end] for start, end in with_marks.marks] == ["b</end>", "</end>"]
