"""The bytes that tokens stand for, and log-probabilities in the shapes of both routes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tokenizers
from helpers_infer import make_tokenizer, write_checkpoint
from tokenizers import decoders, models

from whippet.chat.tokenizer import Tokenizer
from whippet.infer.requests import Drawn
from whippet.serve.logprobs import TokenBytes, chat_logprob, completion_logprobs

TEXT = "Fünf whippets, 日本語 🐕!\n"


def sentencepiece_like() -> tokenizers.Tokenizer:
    """Words that begin with the sign for a space, and bytes for all else; like Phi-3's it has a letter as a piece with
    which vocabularies of bytes write a space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁dog", "s", "▁", "Ġ"]
    core = tokenizers.Tokenizer(
        models.BPE({piece: place for place, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<s>", "</s>"])
    return core


@pytest.fixture
def byte_level(tmp_path: Path) -> Tokenizer:
    write_checkpoint(tmp_path)
    return Tokenizer.load(tmp_path)


def test_the_bytes_of_a_text_are_those_of_its_tokens(byte_level: Tokenizer) -> None:
    of = TokenBytes(byte_level)
    ids = byte_level.encode(TEXT)
    assert b"".join(map(of, ids)) == TEXT.encode() and len(ids) > 20
    assert any(len(of(i)) == 1 and of(i)[0] > 127 for i in ids), "parts of characters"
    assert of(byte_level.added_tokens["<|im_end|>"]) == b"<|im_end|>"
    wider = byte_level.add(["é!"])
    assert TokenBytes(wider)(wider.added_tokens["é!"]) == "é!".encode()
    assert make_tokenizer().get_vocab_size() == byte_level.vocab_size and of(10**6) == b""


def test_the_bytes_of_pieces_and_of_single_bytes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    sentencepiece_like().save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer.load(tmp_path)
    of = TokenBytes(made)
    assert [of(made.token_id(piece) or 0) for piece in ("▁dog", "s", "▁", "Ġ", "<0xE6>", "</s>")] == [
        b" dog", b"s", b" ", "Ġ".encode(), bytes([0xE6]), b"</s>",
    ]  # fmt: skip


def test_what_json_cannot_say(byte_level: Tokenizer) -> None:
    of = TokenBytes(byte_level)
    told = chat_logprob(Drawn(40, -math.inf, ((40, -math.inf), (41, -0.5))), of)
    assert told["logprob"] == -9999.0 and [one["logprob"] for one in told["top_logprobs"]] == [-9999.0, -0.5]
    listed = completion_logprobs([Drawn(40, -math.inf, ((41, -0.5),)), Drawn(42, -1.0)], 1, 7, of)
    assert listed["token_logprobs"] == [-9999.0, -1.0]
    assert listed["text_offset"] == [7, 7 + len(listed["tokens"][0])]
    assert list(listed["top_logprobs"][0].values()) == [-0.5] and listed["top_logprobs"][1] == {}
    assert completion_logprobs([Drawn(40, -1.0)], 0, 0, of)["top_logprobs"] is None
