"""Llama 3's file of ranks. That its ids are tiktoken's is in tests/parity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from helpers_tokenizer_models import ranks_file

from whippet.chat import tiktoken
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import ModelError

BYTES = [bytes([byte]) for byte in range(256)]
RANKS = [*BYTES, b"he", b"ll", b"hell", b" w", "é".encode(), b"llo"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "NUM_RANKS", len(RANKS))


@pytest.mark.usefixtures("small")
def test_a_folder_with_ranks_only(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(ranks_file(RANKS))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == len(RANKS) + 256
    assert tokenizer.encode("hello wé") == [258, ord("o"), 259, 260]
    assert tokenizer.encode("llo", special_tokens=True) == [262, 261]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert tokenizer.stop_ids == {263, 270, 271} and tokenizer.token_text(271) == "<|eot_id|>"
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert tokenizer.encode("<|eot_id|><|reserved_special_token_247|>") == [271, len(RANKS) + 255]
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("hello<|eot_id|>") == [258, ord("o"), 271]


@pytest.mark.usefixtures("small")
def test_names_and_ends_of_the_checkpoint_go_first(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(ranks_file(RANKS))
    added = {"266": {"content": "<|mine|>", "special": True}, "518": {"content": "<|image|>", "special": True}}
    config = {"added_tokens_decoder": added, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [263]}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("<|mine|><|image|>", special_tokens=True) == [266, 518]
    assert tokenizer.token_id("<|finetune_right_pad_id|>") is None and tokenizer.stop_ids == {263}
    added["266"]["content"] = "<|eot_id|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(ModelError, match="two of its special tokens alike"):
        Tokenizer.load(tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.replace(b" 1\n", b" 7\n", 1), r"line 2: .*its rank, 1"),
        (lambda raw: raw.replace(b"AQ== 1", b"AA== 1", 1), r"line 2: .*wanted a new token"),
        (lambda raw: raw.replace(b"AQ== 1", b"!! 1", 1), r"line 2"),
        (lambda raw: raw + b"eHh4eA==\n", r"line 263"),
        (lambda raw: ranks_file(BYTES[1:]), "1 of the 256 bytes are no tokens"),
        (lambda raw: ranks_file([*RANKS, b"xyz"]), r"has 263 ranks, wanted Llama 3's 262"),
        (lambda raw: ranks_file([*RANKS[:-1], b"x" * 257]), "1 to 256 bytes"),
    ],
)
def test_what_is_refused(change: object, said: str, tmp_path: Path) -> None:
    assert callable(change)
    (tmp_path / "tokenizer.model").write_bytes(change(ranks_file(RANKS)))
    with pytest.raises(ModelError, match=said) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.model" in str(caught.value)


def test_letters_of_bytes_are_those_of_the_library() -> None:
    assert sorted(tiktoken.byte_letters()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("é \n\x7f", "𝄞"):
        assert "".join(tiktoken.byte_letters()[byte] for byte in text.encode()) == level.pre_tokenize_str(text)[0][0]
