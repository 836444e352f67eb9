"""SentencePiece's files: what they come to, and that nothing damaged or unknown passes. Parity is in tests/parity."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from helpers_tokenizer_models import (
    BYTE,
    CONTROL,
    NORMAL,
    SMALL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    part,
    sentencepiece_file,
    varint,
)

from whippet.chat import protobuf
from whippet.chat.sentencepiece import read_model
from whippet.chat.sentencepiece_json import as_tokenizer_json
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import ModelError


def core(raw: bytes, **how: bool) -> tokenizers.Tokenizer:
    wanted = {"adds_bos": False, "adds_eos": False, "prefixes_parts": True} | how
    return tokenizers.Tokenizer.from_str(json.dumps(as_tokenizer_json(read_model(raw, "m"), **wanted)))


def tokens(made: tokenizers.Tokenizer, text: str) -> list[str]:
    return made.encode(text, add_special_tokens=False).tokens


def test_the_best_score_merges_first() -> None:
    made = core(sentencepiece_file(SMALL))
    assert tokens(made, "ab") == ["▁a", "b"] and tokens(made, "cab") == ["▁", "c", "ab"]
    assert tokens(made, "xyc") == ["▁", "<unk>", "c"] and tokens(made, "") == []
    assert made.decode(made.encode("cab c", add_special_tokens=False).ids) == "cab c"


def test_a_prefix_before_each_part_or_before_the_text_only() -> None:
    legacy, other = core(sentencepiece_file(SMALL)), core(sentencepiece_file(SMALL), prefixes_parts=False)
    assert tokens(legacy, "a</s>a") == ["▁a", "</s>", "▁a"] and tokens(other, "a</s>a") == ["▁a", "</s>", "a"]
    assert tokens(legacy, " a") == ["▁", "▁a"] and tokens(other, " a") == ["▁a"]
    bare = core(sentencepiece_file(SMALL, normalizer={3: 0}))
    assert tokens(bare, "a ab</s>a") == ["a", "▁a", "b", "</s>", "a"]


def test_bos_and_eos_are_those_of_the_file() -> None:
    made = core(sentencepiece_file(SMALL, {41: 2, 42: 1}), adds_bos=True, adds_eos=True)
    assert made.encode("a").ids == [2, 3, 1]
    assert core(sentencepiece_file(SMALL, {41: -1}), adds_bos=True).encode("a").ids == [3]


def test_bytes_of_what_is_no_piece() -> None:
    spelt = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    made = core(sentencepiece_file([*SMALL, *spelt], {35: 1}))
    ids = made.encode("é<0x41>", add_special_tokens=False).ids
    assert [made.id_to_token(one) for one in ids][:3] == ["▁", "<0xC3>", "<0xA9>"] and len(ids) == 3 + len("<0x41>")
    assert made.decode(ids) == "é<0x41>"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "holds no pieces"),
        (b"\x00", "field 0"),
        (b"\x0a\x05ab", "cut off: field 1 wants 5 bytes and 2 are left"),
        (b"\x0a" + b"\xff" * 11, "more than 10 bytes"),
        (b"\x0a\xff", "cut off: it ends within a number"),
        (b"\x0b", "unknown wire type 3"),
        (b"\x08\x01", "the number 1 stands where"),
        (part(1, b"\x0a\x01\xff"), "piece 0 is damaged: a text is not UTF-8"),
        (part(1, part(1, "a") + part(2, b"123")), "a float has 3 bytes"),
        (part(1, part(1, "a") + part(3, b"1")), "a number is stored as 1 bytes"),
        (part(1, part(2, 0.0)), "piece 0 has 0 characters"),
        (part(1, part(1, "a" * 257)), "257 characters"),
        (part(1, part(1, "a") + part(2, float("nan"))), "the score nan"),
        (part(1, part(1, "a") + part(3, UNUSED)), "of type 5"),
        (part(1, part(1, "a") + part(3, 9)), "of type 9"),
        (sentencepiece_file(SMALL, {3: 3}), "of type word"),
        (sentencepiece_file(SMALL, {24: 1}), "treat_whitespace_as_suffix"),
        (sentencepiece_file(SMALL, normalizer={5: 0}), "does not escape spaces"),
        (sentencepiece_file(SMALL, more=part(5, part(2, b"x"))), "denormalisation"),
        (sentencepiece_file([*SMALL, ("a", -7.0, NORMAL)]), "pieces 6 and 9 are both 'a'"),
        (sentencepiece_file(SMALL[1:]), r"pieces \[\] are of the unknown kind, wanted just 0"),
        (sentencepiece_file([*SMALL, ("u", 0.0, UNKNOWN)]), r"pieces \[0, 9\]"),
        (sentencepiece_file(SMALL, {35: 1}), "the 256 pieces <0x00> to <0xFF>, 0 are there"),
        (sentencepiece_file(SMALL, {42: 9}), "eos_id is 9, but there are 9 pieces"),
        (sentencepiece_file(SMALL, normalizer={2: b"\x00\x04"}), "says 1024 bytes of 2"),
        (sentencepiece_file(SMALL, normalizer={2: (1024).to_bytes(4, "little") + b"\x00" * 10}), "says 1024 bytes"),
        (sentencepiece_file(SMALL, normalizer={2: (1024).to_bytes(4, "little") + b"\xff\x7f\x00\x00" * 256}), "out of"),
        (sentencepiece_file(SMALL, normalizer={2: (1024).to_bytes(4, "little") + b"\x09\x00\x00\x80" * 256}), "out of"),
        (sentencepiece_file(SMALL, normalizer={2: (1024).to_bytes(4, "little") + b"\x00" * 1024 + b"\xff"}), "UTF-8"),
        (sentencepiece_file([*SMALL, ("x  y", 0.0, USER_DEFINED)], normalizer={4: 1}), "user-defined piece 'x  y'"),
    ],
)  # fmt: skip
def test_what_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_model(raw, "m.model")
    assert str(caught.value).startswith("m.model")


def test_numbers_of_the_wire() -> None:
    assert list(protobuf.fields(part(1, 300) + part(5, b"xy") + varint(7 << 3 | 1) + b"12345678", "w")) == [
        (1, 300), (5, b"xy"), (7, b"12345678"),
    ]  # fmt: skip
    assert protobuf.number(next(protobuf.fields(part(1, -1), "w"))[1], "w") == -1


def test_damage_is_our_error_and_never_a_crash(tmp_path: Path) -> None:
    """Bytes flipped and cut anywhere: a tokenizer, or a ModelError that names the file."""
    whole = sentencepiece_file([*SMALL, ("[X]", 0.0, CONTROL), ("zz", 0.0, USER_DEFINED)])
    draw = random.Random(0)
    for number in range(1500):
        raw = bytearray(whole if number % 3 else whole[: draw.randrange(len(whole))])
        for _ in range(draw.randint(0, 3)):
            if raw:
                raw[draw.randrange(len(raw))] = draw.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(bytes(raw))
        try:
            Tokenizer.load(tmp_path).encode("ab zz é</s>")
        except ModelError as error:
            assert "tokenizer.model" in str(error)


def folder(place: Path, raw: bytes, config: dict[str, Any] | None = None, name: str = "tokenizer.model") -> Path:
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(raw)
    if config is not None:
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def test_a_folder_with_a_model_only(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder(tmp_path / "m", sentencepiece_file(SMALL)))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.adds_bos, tokenizer.adds_eos) == (
        "<s>",
        "</s>",
        True,
        False,
    )
    assert tokenizer.encode("a</s>a", special_tokens=True) == [1, 3, 2, 3] and tokenizer.stop_ids == {2}
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.encode("a</s>a", special_tokens=True) == [1, 3, 2, 3] and again.eos_id == 2
    set_up = {"add_bos_token": False, "add_eos_token": True, "legacy": False, "eos_token": "<s>"}
    other = Tokenizer.load(folder(tmp_path / "m", sentencepiece_file(SMALL), set_up))
    assert other.encode("a</s>a", special_tokens=True) == [3, 2, 6, 2] and other.eos_id == 1
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: legacy is 'yes', wanted true or false"):
        Tokenizer.load(folder(tmp_path / "m", sentencepiece_file(SMALL), {"legacy": "yes"}))


def test_mistrals_own_files_and_which_file_counts(tmp_path: Path) -> None:
    place = folder(tmp_path, sentencepiece_file(SMALL), name="tokenizer.model.v3")
    assert Tokenizer.load(place).encode("a</s>a") == [3, 2, 6]
    folder(place, sentencepiece_file(SMALL))
    assert Tokenizer.load(place).encode("a</s>a") == [3, 2, 3]
    (place / "tokenizer.model").write_bytes(b"neither of them")
    with pytest.raises(ModelError, match=r"tokenizer\.model"):
        Tokenizer.load(place)
