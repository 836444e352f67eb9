"""One BOS a chat and the ids of transformers: chats drawn at random, Llama-3's tokenizer, real templates over it."""

from __future__ import annotations

import json
import random
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import helpers_chat
import pytest
from helpers_chat import conversations, real_tokenizer
from helpers_data import shared, shared_bytes

from whippet.chat import render, sandbox
from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import DataError

TEMPLATES = (
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "meetkai-functionary-medium-v3.2",
)
RENAMED = {
    "<|begin_of_text|>": "<｜begin▁of▁sentence｜>", "<|end_of_text|>": "<｜end▁of▁sentence｜>",
    "<|reserved_special_token_3|>": "<｜User｜>", "<|reserved_special_token_4|>": "<｜Assistant｜>",
}  # fmt: skip
"""DeepSeek's distilled Llamas have the same vocabulary with some special tokens under other names."""


class Frozen(datetime):
    """Some templates print the day."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Frozen:
        return cls(2025, 3, 9, 12, 30)


@pytest.fixture(autouse=True)
def many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the odd texts that all tests of chats draw from, lines in some fifty languages."""
    lines = shared_bytes("text", "multilingual.txt.gz").decode("utf-8").splitlines()
    monkeypatch.setattr(helpers_chat, "TEXTS", (*helpers_chat.TEXTS * 20, *lines[:1500]))


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")
    for module in (oracle, render, sandbox):
        monkeypatch.setattr(module, "datetime", Frozen)


def both(template: str, place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Renderer, Any]:
    """Our renderer and transformers' tokenizer, from the same files; with BOS before texts, as all Llamas have it."""
    import transformers

    folder = real_tokenizer("llama3", tmp_path_factory)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    bos, eos = "<|begin_of_text|>", "<|eot_id|>"
    if template.startswith("deepseek"):
        for old, new in RENAMED.items():
            text = text.replace(json.dumps(old), json.dumps(new, ensure_ascii=False))
        bos, eos = RENAMED["<|begin_of_text|>"], RENAMED["<|end_of_text|>"]
    source = shared("chat_templates", "llama.cpp", f"{template}.jinja").read_text(encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "chat_template": source}
    (place / "tokenizer.json").write_text(text, encoding="utf-8")
    (place / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    tokenizer = Tokenizer.load(place)
    assert tokenizer.adds_bos and theirs("x").input_ids[0] == tokenizer.bos_id == 128000
    return make_renderer(tokenizer, None), theirs


def compare(renderer: Renderer, theirs: Any, wanted: int, seed: int) -> int:
    """Draw chats until ``wanted`` were rendered. Those that a template refuses or leaves a part out of do not count."""
    compared = 0
    for conversation in conversations(random.Random(seed), 10 * wanted):
        values = [message.as_template_value() for message in conversation.messages]
        try:
            ours = renderer.render(conversation).ids.tolist()
        except DataError:
            continue
        prompt = renderer.prompt_ids(conversation.messages[:-1], conversation.tools)
        asked: dict[str, Any] = {"tools": list(conversation.tools) or None, "tokenize": True, "return_dict": False}
        assert ours == theirs.apply_chat_template(values, **asked)
        assert prompt == theirs.apply_chat_template(values[:-1], add_generation_prompt=True, **asked)
        for ids in (ours, prompt):
            assert ids[0] == renderer.tokenizer.bos_id and ids.count(ids[0]) == 1
        compared += 1
        if compared == wanted:
            break
    return compared


@pytest.mark.parametrize(
    ("template", "count"),
    [
        *((name, 200) for name in TEMPLATES),
        *(pytest.param(name, 10_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)]) for name in TEMPLATES),
    ],
)
def test_ids_are_those_of_transformers_with_one_bos(
    template: str, count: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """1,000 chats over five templates; 50,000 in the long version."""
    assert compare(*both(template, tmp_path, tmp_path_factory), count, seed=11) == count
