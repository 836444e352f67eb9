"""Ids of ``tokenizer.model`` equal those of the library that made it: sentencepiece, tiktoken.

The real files are in ../shared/data; others are trained here, in every make that is read. Control pieces are left out
of the texts: we recognise them there, SentencePiece does not.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers_data import SHARED, shared, shared_bytes
from helpers_tokenizer_models import fuzz

from whippet.chat.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
CONTROL = ("<s>", "</s>", "<unk>", "<bos>", "<eos>", "<pad>")


def real_lines() -> list[str]:
    """All texts of ../shared/data/text, line by line."""
    found: list[str] = []
    for path in sorted((SHARED / "text").iterdir()):
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
        if ".jsonl" in path.name:
            rows = [json.loads(line) for line in text.splitlines()]
            text = "\n".join(str(value) for row in rows for value in row.values())
        found += text.split("\n")
    return [line for line in dict.fromkeys(found) if not any(name in line for name in CONTROL)]


def lines(number: int) -> list[str]:
    shared("text")
    found = real_lines()
    return random.Random(3).sample(found, min(number, len(found)))


def load(folder: Path, raw: bytes, name: str = "tokenizer.model", config: dict[str, Any] | None = None) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(raw)
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("number", [6_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["llama2/tokenizer.model", "mistral-v0.3-instruct/tokenizer.model.v3"])
def test_real_sentencepiece_files(name: str, number: int, tmp_path: Path) -> None:
    raw = shared_bytes("tokenizers", *name.split("/"))
    ours, theirs = load(tmp_path, raw), sentencepiece.SentencePieceProcessor(model_proto=raw)
    texts = [*lines(number), *fuzz(2_000)]
    assert ours.encode_batch(texts) == theirs.encode(texts)
    assert [ours.decode(ids) for ids in ours.encode_batch(texts)] == [text.replace("▁", " ") for text in texts]
    assert ours.encode("x", special_tokens=True) == [theirs.bos_id(), *theirs.encode("x")]
    assert (ours.vocab_size, ours.eos_id) == (theirs.get_piece_size(), theirs.eos_id())


def test_mistrals_file_comes_to_its_published_tokenizer_json(tmp_path: Path) -> None:
    raw = shared_bytes("tokenizers", "mistral-v0.3-instruct", "tokenizer.model.v3")
    ours = load(tmp_path, raw, name="tokenizer.model.v3")
    ours.save(tmp_path / "saved")
    made = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    published = json.loads(shared_bytes("tokenizers", "mistral-v0.3-instruct", "tokenizer.json.gz"))
    assert {key: value for key, value in made.items() if key != "model"} == {
        key: value for key, value in published.items() if key != "model"
    }
    merges, theirs = made["model"].pop("merges"), published["model"].pop("merges")
    assert {tuple(pair) for pair in merges} == {tuple(pair.split(" ")) for pair in theirs}
    assert ["".join(pair) for pair in merges] == [pair.replace(" ", "") for pair in theirs], "the order of what is made"
    assert made["model"] == published["model"]


@pytest.mark.parametrize("number", [10_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_llama_3_ranks(number: int, tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    from whippet.chat.tiktoken import WORDS, special_names

    raw = shared_bytes("tokenizers", "llama3", "tokenizer.model")
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, raw.splitlines())}
    special = {name: len(ranks) + place for place, name in enumerate(special_names({}))}
    theirs = tiktoken.Encoding("llama3", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=special)
    ours = load(tmp_path, raw)
    texts = [*lines(number), *fuzz(2_000, ("<|eot_id|>", "12345678", "'S"))]
    assert ours.encode_batch(texts) == theirs.encode_batch(texts, allowed_special="all", num_threads=1)
    assert [ours.decode(ids) for ids in ours.encode_batch(texts[-2_000:])] == texts[-2_000:]
    published = json.loads(shared_bytes("tokenizers", "llama3", "tokenizer.json.gz"))
    assert [(one["id"], one["content"]) for one in published["added_tokens"]] == sorted(
        (token_id, name) for name, token_id in special.items()
    )
    ours.save(tmp_path / "saved")
    made = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    assert made["model"]["vocab"] == published["model"]["vocab"]


def trained(**options: Any) -> bytes:
    """A small model of sentencepiece's own making."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(1_500)),
        model_writer=out,
        vocab_size=900,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "byte_fallback": True},
        {"model_type": "bpe", "byte_fallback": False, "add_dummy_prefix": False, "user_defined_symbols": ["<x>", "zz"]},
        {"model_type": "bpe", "byte_fallback": False, "user_defined_symbols": ["<x>", "zz", "▁▁"]},
        {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": True},
        {"model_type": "unigram", "byte_fallback": True, "user_defined_symbols": ["<x>", "anda"]},
        {"model_type": "unigram", "byte_fallback": False, "add_dummy_prefix": False},
    ],
    ids=lambda options: "-".join(f"{value}" for value in options.values()),
)  # fmt: skip
def test_trained_files(options: dict[str, Any], tmp_path: Path) -> None:
    rules = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    raw = trained(**(rules | options))
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=raw), load(tmp_path, raw)
    texts = [*lines(1_500), *fuzz(2_000, ("<x>", "anda", "z"))]
    if options["model_type"] == "unigram":
        texts = [text for text in texts if "<0x" not in text]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids == theirs.encode(text), text


def test_rules_of_normalisation(tmp_path: Path) -> None:
    """Real text; what the library's normaliser loses of made-up text (marks upon replaced characters) it loses in
    transformers too, which has nothing else."""
    raw = trained(model_type="unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=raw), load(tmp_path, raw)
    texts = [*lines(3_000), "ﬁne ① ½ Ａ  b\u3000c ㍿\t", " e\u0301 "]
    assert ours.encode_batch(texts) == theirs.encode(texts)
    assert ours.encode("ﬁne") == ours.encode("fine")


def test_gemma_2s_make(tmp_path: Path) -> None:
    """Its vocabulary is not to be had, so one is trained: BPE, byte fallback, no prefix, and Gemma 2's added tokens,
    user-defined pieces among them. It goes through transformers and back."""
    transformers = pytest.importorskip("transformers")
    config = json.loads(shared_bytes("tokenizers", "gemma", "gemma2_tokenizer_config.json"))
    added = [
        token["content"] for _, token in sorted(config["added_tokens_decoder"].items(), key=lambda one: int(one[0]))
    ]
    named = {"<pad>", "<eos>", "<bos>", "<unk>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    raw = trained(
        model_type="bpe", byte_fallback=True, add_dummy_prefix=False, normalization_rule_name="identity",
        remove_extra_whitespaces=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", bos_piece="<bos>",
        eos_piece="<eos>", control_symbols=turns,
        user_defined_symbols=[text for text in added if text not in named and text not in turns],
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    kept = {key: config[key] for key in ("add_bos_token", "add_eos_token", "bos_token", "eos_token", "pad_token")}
    ours = load(tmp_path, raw, config=kept)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.adds_bos) == (2, 1, 0, True)
    texts = [*lines(2_000), *fuzz(2_000, ("\n\n", "\t", "<table>", "<h1>", "[multimodal]", "     ", "▁▁"))]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids == theirs.encode(text), text
    turn = "<start_of_turn>user\nhi  é<end_of_turn>\n"
    wanted = [
        theirs.piece_to_id(turns[0]),
        *theirs.encode("user\nhi  é"),
        theirs.piece_to_id(turns[1]),
        *theirs.encode("\n"),
    ]
    assert ours.encode(turn) == wanted and ours.decode(wanted) == turn
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert again(texts[-500:])["input_ids"] == ours.encode_batch(texts[-500:], special_tokens=True)


@pytest.mark.parametrize("name", ["llama2/tokenizer.model", "llama3/tokenizer.model"])
def test_transformers_reads_what_is_saved(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = load(tmp_path, shared_bytes("tokenizers", *name.split("/")))
    ours.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    texts = [*lines(500), *fuzz(500, (str(ours.eos_token),))]
    assert theirs(texts)["input_ids"] == ours.encode_batch(texts, special_tokens=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
