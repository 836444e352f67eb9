"""The tokenizer of a checkpoint: special tokens, end tokens, padding, streaming, saving, and broken files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers_chat import TEXTS, byte_tokenizer, real_tokenizer

from whippet.chat.tokenizer import Tokenizer
from whippet.errors import ModelError, UsageError

CONFIG = {"bos_token": "<s>", "eos_token": "</s>"}


def written(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def test_special_tokens_and_end_tokens(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path, adds_bos=True)
    written(tmp_path, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    written(tmp_path, "generation_config.json", {"eos_token_id": [2, 4]})
    written(tmp_path, "config.json", {"eos_token_id": 2, "auto_map": {"AutoModel": "evil.py"}})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos, tokenizer.adds_eos) == (1, 2, True, False)
    assert tokenizer.stop_ids == {2, 4}
    assert tokenizer.encode("a</s>", special_tokens=True) == [1, *tokenizer.encode("a"), 2]
    assert tokenizer.decode(tokenizer.encode("a</s>"), skip_special=True) == "a"
    assert tokenizer.vocab_size == 256 + 6
    assert {1, 2} <= tokenizer.special_ids and tokenizer.token_id("<s>") == 1 and tokenizer.token_text(2) == "</s>"


def test_special_tokens_of_the_old_layout(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    written(tmp_path, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.adds_bos) == ("<s>", "</s>", False)


def test_end_token_known_by_id_only(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    written(tmp_path, "config.json", {"eos_token_id": [2], "bos_token_id": 1})
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_token, tokenizer.eos_id, tokenizer.stop_ids) == ("</s>", 2, {2})


@pytest.mark.parametrize(
    ("config", "jinja", "expected"),
    [
        ({}, None, None),
        ({"chat_template": "A"}, None, "A"),
        ({"chat_template": "A"}, "B", "B"),
        ({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}, None, "D"),
        ({"chat_template": [{"name": "rag", "template": "T"}]}, None, None),
    ],
)
def test_which_template_counts(tmp_path: Path, config: Any, jinja: str | None, expected: str | None) -> None:
    byte_tokenizer(tmp_path)
    written(tmp_path, "tokenizer_config.json", CONFIG | config)
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    assert Tokenizer.load(tmp_path).chat_template == expected


def test_templates_in_files_are_all_there_are(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    listed = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    written(tmp_path, "tokenizer_config.json", CONFIG | {"chat_template": listed})
    assert Tokenizer.load(tmp_path).chat_templates == {"default": "D", "rag": "R"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_templates == {"tool_use": "T"} and tokenizer.chat_template is None
    (tmp_path / "chat_template.jinja").write_text("J")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_templates == {"default": "J", "tool_use": "T"} and tokenizer.chat_template == "J"
    tokenizer.save(tmp_path / "kept", chat_template="J")
    assert Tokenizer.load(tmp_path / "kept").chat_templates == tokenizer.chat_templates
    tokenizer.save(tmp_path / "chosen", chat_template="T")
    assert Tokenizer.load(tmp_path / "chosen").chat_templates == {"default": "T", "tool_use": "T"}
    tokenizer.save(tmp_path / "other", chat_template="O")
    assert Tokenizer.load(tmp_path / "other").chat_templates == {"default": "O"}


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_further_template_out_of_the_folder_is_refused(linked: str, tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "model")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x.jinja").write_text("S")
    place = tmp_path / "model" / "additional_chat_templates"
    if linked == "folder":
        place.symlink_to(tmp_path / "secret")
    else:
        place.mkdir()
        (place / "x.jinja").symlink_to(tmp_path / "secret" / "x.jinja")
    with pytest.raises(ModelError, match="outside"):
        Tokenizer.load(tmp_path / "model")


def test_bos_and_eos_as_the_configuration_says(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path, adds_bos=True)
    for config, around in (
        ({}, (1, None)),
        ({"add_bos_token": False}, (None, None)),
        ({"add_eos_token": True}, (1, 2)),
    ):
        written(tmp_path, "tokenizer_config.json", CONFIG | config)
        tokenizer = Tokenizer.load(tmp_path)
        text = tokenizer.encode("a")
        wanted = [one for one in (around[0], *text, around[1]) if one is not None]
        assert tokenizer.encode("a", special_tokens=True) == wanted
        tokenizer.save(tmp_path / "saved")
        assert Tokenizer.load(tmp_path / "saved").encode("a", special_tokens=True) == wanted
    written(tmp_path, "tokenizer_config.json", CONFIG | {"add_bos_token": 1})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: add_bos_token is 1, wanted true or false"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens(tmp_path: Path, special: bool) -> None:
    byte_tokenizer(tmp_path, adds_bos=True)
    written(tmp_path, "tokenizer_config.json", CONFIG)
    before = Tokenizer.load(tmp_path)
    after = before.add(["<|one|>", "</s>", "é "], special=special)
    assert (before.vocab_size, after.vocab_size) == (262, 264) and before.token_id("<|one|>") is None
    assert after.encode("a <|one|>é </s>") == [*before.encode("a "), 262, 263, 2]
    assert after.decode([262, 263]) == "<|one|>é " and after.decode([262], skip_special=True) == "<|one|>" * (
        not special
    )
    for text in TEXTS:
        assert after.encode(text, special_tokens=True) == before.encode(text, special_tokens=True)
    assert (after.bos_id, after.eos_id, after.adds_bos) == (1, 2, True)
    after.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.encode("a<|one|>é </s>") == after.encode("a<|one|>é </s>") and again.vocab_size == 264
    third = again.add(["<|two|>"])
    assert third.encode("<|two|><|one|>") == [264, 262]


@pytest.mark.parametrize(("texts", "said"), [([""], "empty"), (["a", "b", "a"], "twice"), (["\ud800x"], "UTF-16")])
def test_what_cannot_be_added(tmp_path: Path, texts: list[str], said: str) -> None:
    byte_tokenizer(tmp_path)
    with pytest.raises(UsageError, match=f"tokens to add.*{said}"):
        Tokenizer.load(tmp_path).add(texts)


def test_spans_cover_the_text(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    ids, spans = tokenizer.encode_spans("é</s>x")
    assert len(ids) == 4 and spans == [(0, 1), (0, 1), (1, 5), (5, 6)]


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    value = json.loads((tmp_path / "tokenizer.json").read_text())
    value["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    written(tmp_path, "tokenizer.json", value)
    assert len(Tokenizer.load(tmp_path).encode("x" * 50)) == 50


def test_tokens_that_only_the_config_names_are_added(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    token = {"content": "<pad>", "special": True, "lstrip": False, "rstrip": False}
    written(tmp_path, "tokenizer_config.json", CONFIG | {"pad_token": "<pad>", "added_tokens_decoder": {"262": token}})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.pad_id == 262 and tokenizer.encode("<pad>") == [262] and tokenizer.vocab_size == 263
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("a<pad>") == tokenizer.encode("a<pad>")
    written(tmp_path, "tokenizer_config.json", CONFIG | {"added_tokens_decoder": {"300": token}})
    with pytest.raises(ModelError, match="300"):
        Tokenizer.load(tmp_path)


def test_pad_must_not_be_the_end_token(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    written(tmp_path, "tokenizer_config.json", CONFIG | {"pad_token": "</s>"})
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(
        ModelError, match=r"tokenizer_config.json: pad token '</s>'.*--set model.pad_token=\"<\|reserved_0\|>\""
    ):
        tokenizer.check_pad(None)
    with pytest.raises(ModelError, match=r"model.pad_token: pad token '<nope>'"):
        tokenizer.check_pad("<nope>")
    with pytest.raises(ModelError, match=r"model.pad_token: pad token '\\udc80' is not in the vocabulary"):
        tokenizer.check_pad("\udc80")
    with pytest.raises(ModelError, match=r"model.pad_token: pad token '</s>'"):
        tokenizer.check_pad("</s>")
    tokenizer.check_pad("<|reserved_0|>")
    tokenizer.save(tmp_path / "saved", pad_token="<|reserved_0|>")
    Tokenizer.load(tmp_path / "saved").check_pad(None)


def test_pad_named_by_id_in_the_model_config(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    written(tmp_path, "tokenizer_config.json", CONFIG)
    written(tmp_path, "config.json", {"pad_token_id": 2})
    with pytest.raises(ModelError, match=r"[/\\]config.json: pad token '</s>'"):
        Tokenizer.load(tmp_path).check_pad(None)


def test_an_unset_pad_is_chosen(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path, extra=("<|image_pad|>", "<|finetune_right_pad_id|>"))
    written(tmp_path, "tokenizer_config.json", CONFIG)
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.check_pad(None)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_stream_equals_decode(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    draw = random.Random(0)
    for _ in range(200):
        ids = tokenizer.encode("".join(draw.choices(TEXTS, k=3)))
        if draw.random() < 0.3:
            ids = ids[: draw.randrange(len(ids) + 1)] + [draw.randrange(262) for _ in range(5)]
        stream = tokenizer.stream()
        parts = [stream.push(token_id) for token_id in ids]
        assert "".join(parts) + stream.close() == tokenizer.decode(ids)


def test_stream_never_shows_half_a_character(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in tokenizer.encode("é𝄞")] == ["", "é", "", "", "", "𝄞"]
    assert stream.close() == ""
    assert stream.push(tokenizer.encode("é")[0]) == "" and stream.close() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("name", ["llama3", "mistral-v0.3-instruct", "phi-3-mini", "qwen2.5", "zephyr"])
def test_stream_equals_decode_of_real_tokenizers(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = Tokenizer.load(real_tokenizer(name, tmp_path_factory))
    for text in TEXTS:
        ids = tokenizer.encode(text + " and 你好👩‍👩‍👧 again")
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.close() == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.json", b"", "not valid JSON"),
        ("tokenizer.json", b"{", "not valid JSON"),
        ("tokenizer.json", b"[]", "holds a list"),
        ("tokenizer.json", b"{}", "cannot be read"),
        ("tokenizer.json", b"\xff\xfe", "not valid JSON"),
        ("tokenizer.json", b'{"a":' * 100_000, "not valid JSON"),
        (
            "tokenizer.json",
            b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["b c"]}}',
            "cannot be read",
        ),
        ("tokenizer.json", b'{"model":{"type":"BPE","continuing_subword_prefix":"##"}}', "continuing_subword_prefix"),
        ("tokenizer_config.json", b"[1]", "holds a list"),
        ("tokenizer_config.json", b'{"bos_token": 3}', "special token"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "a"}]}', "chat_template, entry 0"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "../a", "template": "x"}]}', "plain 'name'"),
        ("tokenizer_config.json", b'{"eos_token": "\\ud83d"}', r"eos_token holds half of a UTF-16 pair, '\\ud83d'"),
        ("tokenizer_config.json", b'{"pad_token": {"content": "x\\udc00"}}', r"pad_token holds half .* '\\udc00'"),
        ("tokenizer_config.json", b'{"unk_token": "\\ud83d"}', "unk_token holds half"),
        ("tokenizer_config.json", b'{"chat_template": "\\ud83d"}', "chat_template holds half"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"262": {"content": "\\ud83d"}}}',
            "added_tokens_decoder.262.content holds half",
        ),
        ("special_tokens_map.json", b'{"bos_token": "\\ud83d"}', "bos_token holds half"),
        ("special_tokens_map.json", b'{"bos_token": []}', "special token"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "added_tokens_decoder"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"1": {"content": 1}}}', "added_tokens_decoder"),
        ("config.json", b"nonsense", "config.json is not valid JSON"),
        ("generation_config.json", b'"x"', "generation_config.json"),
        ("chat_template.jinja", b"\xff", "UTF-8"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    byte_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=complaint) as caught:
        Tokenizer.load(tmp_path)
    assert name in str(caught.value)


def test_truncated_tokenizer_is_an_error_at_any_length(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 50):
        (tmp_path / "tokenizer.json").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)


def test_missing_or_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ModelError, match="not a folder"):
        Tokenizer.load(tmp_path / "absent")
    byte_tokenizer(tmp_path)
    monkeypatch.setattr("whippet.chat.checkpoint_files.MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(ModelError, match="at most 100"):
        Tokenizer.load(tmp_path)


NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    byte_tokenizer(folder)
    byte_tokenizer(elsewhere)
    for other in NAMES[1:]:
        written(elsewhere, other, {})
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere / name)
    with pytest.raises(ModelError, match=f"{folder / name} leads to .*, outside {folder}: "):
        Tokenizer.load(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    with pytest.raises(ModelError, match=f"{folder / name}.* back to itself|{folder / name} cannot be read"):
        Tokenizer.load(folder)
    (folder / name).unlink()
    (folder / "kept").write_bytes((elsewhere / name).read_bytes())
    (folder / name).symlink_to("kept")
    (tmp_path / "alias").symlink_to(folder)
    assert Tokenizer.load(tmp_path / "alias").vocab_size == Tokenizer.load(elsewhere).vocab_size


def test_mutated_tokenizer_files_raise_only_our_errors(tmp_path: Path) -> None:
    """Flipped bytes and odd values in tokenizer.json and tokenizer_config.json: loaded, or a ModelError."""
    byte_tokenizer(tmp_path)
    written(tmp_path, "tokenizer_config.json", CONFIG | {"added_tokens_decoder": {"3": {"content": "<unk>"}}})
    draw = random.Random(0)
    originals = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    for number in range(300):
        name = ("tokenizer.json", "tokenizer_config.json")[number % 2]
        raw = bytearray(originals[name])
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(len(raw))] = draw.choice(b'{}[]",:0123456789 ntf\x00\xff-e')
        (tmp_path / name).write_bytes(bytes(raw))
        try:
            Tokenizer.load(tmp_path).encode("Hello é</s>")
        except ModelError as error:
            assert name in str(error)
        (tmp_path / name).write_bytes(originals[name])
