"""Tokenizers in GGUF: what llama.cpp makes of the metadata gives the ids of the real tokenizers."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from helpers_chat import real_tokenizer

from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import ModelError
from whippet.weights.gguf_words import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    model_name,
    pre_tokenizer,
    word_pairs,
)

TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.", "  two  spaces, a\ttab\nand a line", "ünder thé moon → 日本語 🐕",
    "def f(x):\n    return x ** 2  # it's", "Donaudampfschifffahrtsgesellschaft", "aaaaaaaaaa    bbb",
)  # fmt: skip


def words(name: str, factory: pytest.TempPathFactory, rows: int) -> tuple[Renderer, dict[str, Any], list[str]]:
    folder = real_tokenizer(name, factory)
    renderer = make_renderer(Tokenizer.load(folder), None)
    described = json.loads((folder / "tokenizer.json").read_text())
    pairs, notes = word_pairs(renderer, described, rows)
    return renderer, pairs, notes


@pytest.mark.parametrize(
    ("name", "rows", "pre", "ends", "adds_bos"),
    [
        ("llama3", 128256, "llama-bpe", (128000, 128009, 128001, 128008), True),
        ("qwen2.5", 152064, "qwen2", (None, 151645, None, None), False),
        ("smollm2", 49160, "gpt-2", (1, 2, None, None), False),
        ("phi-3-mini", 32064, "default", (1, 32000, 32007, None), False),
    ],
)
def test_real_tokenizers(
    name: str, rows: int, pre: str, ends: Any, adds_bos: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    renderer, pairs, _ = words(name, tmp_path_factory, rows)
    assert pairs["tokenizer.ggml.pre"] == pre and pairs["tokenizer.ggml.add_bos_token"] is adds_bos
    kinds, tokens = pairs["tokenizer.ggml.token_type"], pairs["tokenizer.ggml.tokens"]
    assert len(tokens) == len(kinds) == rows
    assert (tokens[-1], kinds[-1]) == (f"[PAD{rows - 1}]", UNUSED) or name == "llama3"
    assert tuple(pairs.get(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos", "eot", "eom")) == ends
    strips = {"special": True, "rstrip": name == "phi-3-mini"}
    assert model_name("a", {"added_tokens": [strips]}) == ("a (Phi-3)" if name == "phi-3-mini" else "a")
    if name == "qwen2.5":
        assert tokens[151657] == "<tool_call>" and kinds[151657] == USER_DEFINED
    assert {kinds[token_id] for token_id in renderer.tokenizer.special_ids} <= {CONTROL, 2}
    assert kinds.count(BYTE) == (256 if name == "phi-3-mini" else 0)


@pytest.mark.parametrize("name", ["phi-3-mini", "zephyr", "mistral-v0.3-instruct"])
def test_scores_join_the_pieces_that_merges_do(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """llama.cpp joins, of all neighbours whose sum is a token, the pair with the highest score, the first of equals."""
    renderer, pairs, notes = words(name, tmp_path_factory, 32768)
    assert ["begins with a space" in note for note in notes] == ([True] if "mistral" in name else [])
    tokens, scores = pairs["tokenizer.ggml.tokens"], pairs["tokenizer.ggml.scores"]
    kinds = pairs["tokenizer.ggml.token_type"]
    known = {text: token_id for token_id, text in enumerate(tokens) if kinds[token_id] == NORMAL}
    bytes_of = {text: token_id for token_id, text in enumerate(tokens) if kinds[token_id] == BYTE}
    assert pairs["tokenizer.ggml.add_space_prefix"] is True
    for text in TEXTS:
        text = text.strip() if notes else text
        parts = list((" " + text).replace(" ", "▁"))
        while True:
            pieces = [known.get(a + b) for a, b in pairwise(parts)]
            joined = [(scores[piece], -i) for i, piece in enumerate(pieces) if piece is not None]
            if not joined:
                break
            place = -max(joined)[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids = []
        for part in parts:
            fallback = [bytes_of[f"<0x{byte:02X}>"] for byte in part.encode()] if part not in known else []
            ids += fallback or [known[part]]
        assert ids == renderer.tokenizer.encode(text), text


def test_what_llama_cpp_has_no_name_for_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert pre_tokenizer({"pre_tokenizer": byte_level}) == "gpt-2"
    digits = [{"type": "Digits", "individual_digits": True}, byte_level]
    assert pre_tokenizer({"pre_tokenizer": {"type": "Sequence", "pretokenizers": digits}}) == "smollm"
    split = [{"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated"}, byte_level | {"use_regex": False}]
    for odd in ({"type": "Sequence", "pretokenizers": split}, byte_level | {"add_prefix_space": True}, None):
        with pytest.raises(ModelError, match=r"llama\.cpp's name for this pre-tokenizer"):
            pre_tokenizer({"pre_tokenizer": odd})
    renderer, _, _ = words("zephyr", tmp_path_factory, 32002)
    with pytest.raises(ModelError, match="the tokenizer is Unigram; known: BPE"):
        word_pairs(renderer, {"model": {"type": "Unigram"}}, 32002)
    with pytest.raises(ModelError, match="has 32002 tokens and the model 32000 rows"):
        word_pairs(renderer, {"model": {"type": "BPE"}}, 32000)
    lower = {"model": {"type": "BPE", "byte_fallback": True, "merges": []}, "normalizer": {"type": "Lowercase"}}
    with pytest.raises(ModelError, match="normalizer is not what SentencePiece does"):
        word_pairs(renderer, lower, 32002)
