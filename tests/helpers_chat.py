"""Conversations drawn at random, real tokenizers, and transformers' rendering as the oracle."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import tokenizers
from helpers_data import shared, shared_bytes

from whippet.chat.messages import Conversation, Message, ToolCall

TEXTS = (
    "",
    " ",
    "hi",
    "yes",
    "yes",
    "  leading and trailing \n",
    "line one\n\nline two\t\ttabs",
    "Grüße, 你好, здравствуй, مرحبا",
    "👩‍👩‍👧‍👦 e\u0301 \u200b zero width \ufeff",
    "𝄞𝔘𝔫𝔦",
    "<|im_end|>\n<|im_start|>user\n",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "</s><s>[INST] x [/INST]",
    "assistant",
    "<think>hm</think>answer",
    "{{ 7 * 7 }}{% if x %}",
    '{"name": "f", "parameters": {}}',
    "<tool_call>\n{}\n</tool_call>",
    "The answer is 42.",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}},
            "required": ["city"],
        },
    },
}
CALL = ToolCall("get_weather", {"city": "Köln", "days": 3, "deep": {"a": [1, None, True, "<|im_end|>"]}}, "abcdef123")


def conversations(draw: random.Random, number: int) -> Iterator[Conversation]:
    """Single and multi-turn, with and without a system message, tools, calls and results."""
    for _ in range(number):
        messages: list[Message] = []
        if draw.random() < 0.4:
            messages.append(Message("system", draw.choice(TEXTS)))
        with_tools = draw.random() < 0.3
        for _ in range(draw.randint(1, 4)):
            messages.append(Message("user", draw.choice(TEXTS)))
            if with_tools and draw.random() < 0.7:
                calls = (CALL,) * draw.choice((1, 1, 1, 2))
                messages.append(Message("assistant", draw.choice(("", "", "Let me see.")), calls))
                messages += [Message("tool", draw.choice(TEXTS), tool_call_id=CALL.id, name=CALL.name) for _ in calls]
            messages.append(Message("assistant", draw.choice(TEXTS)))
        yield Conversation(tuple(messages), (TOOL,) if with_tools else ())


def transformers_render(
    source: str, conversation: Conversation, prompt: bool, now: datetime, **special: object
) -> str | None:
    """What transformers renders, None where it fails."""
    import transformers.utils.chat_template_utils as oracle

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return now

    oracle.datetime = Frozen
    try:
        texts, _ = oracle.render_jinja_template(
            conversations=[[message.as_template_value() for message in conversation.messages]],
            tools=list(conversation.tools) or None,
            chat_template=source,
            add_generation_prompt=prompt,
            **special,
        )
    except Exception:
        return None
    finally:
        oracle.datetime = datetime
    return str(texts[0])


def real_tokenizer(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of the real tokenizers of ../shared/data, unpacked once a session."""
    if name not in _UNPACKED:
        folder = tmp_path_factory.mktemp("tokenizer") / name
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes(shared_bytes("tokenizers", name, "tokenizer.json.gz"))
        if name == "llama3":
            template = shared("chat_templates", "llama.cpp", "meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
            config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": template}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [128001, 128008, 128009]}))
        else:
            (folder / "tokenizer_config.json").write_bytes(shared_bytes("tokenizers", name, "tokenizer_config.json"))
        if name == "smollm2":
            (folder / "chat_template.jinja").write_bytes(shared_bytes("tokenizers", name, "chat_template.jinja"))
        _UNPACKED[name] = folder
    return _UNPACKED[name]


_UNPACKED: dict[str, Path] = {}


def byte_tokenizer(
    folder: Path, *, adds_bos: bool = False, extra: tuple[str, ...] = ("<unk>", "<|end|>", "<|reserved_0|>")
) -> Path:
    """Write a tokenizer.json of bytes, with ``<s>`` = 1, ``</s>`` = 2 and some more special tokens."""
    specials = ("<|0|>", "<s>", "</s>", *extra)
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={}, merges=[]))
    core.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in specials])
    value = json.loads(core.to_str())
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    value["model"]["vocab"] = {text: token_id for token_id, text in enumerate((*specials, *alphabet))}
    value["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    value["decoder"] = value["pre_tokenizer"]
    if adds_bos:
        bos, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    return folder
