"""Our reader of GGUF: what it reads is what was written, and what is not whole is a ModelError that names the file."""

from __future__ import annotations

import random
import resource
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import CONFIGS, random_decoder

from whippet.errors import ModelError
from whippet.weights import gguf_read
from whippet.weights.gguf import load_gguf, packed, planned, write_gguf
from whippet.weights.gguf_meta import config_of, model_pairs
from whippet.weights.gguf_read import GGUFFile
from whippet.weights.merge import merged_tensors

pytest.importorskip("gguf", reason="the gguf package is not installed")
CONFIG = replace(CONFIGS["llama3"], num_layers=1, hidden_size=32, intermediate_size=32, head_dim=8, num_kv_heads=2)
WORDS = {
    "tokenizer.ggml.tokens": ["a", "b", "é"], "tokenizer.ggml.token_type": [1, 1, 3],
    "tokenizer.ggml.scores": [0.5, -1.0, 0.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file, with arrays of all sorts."""
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    plan = planned(CONFIG, "q8_0")
    tensors = packed(CONFIG, merged_tensors(random_decoder(CONFIG)), plan, "cpu")
    write_gguf(path, model_pairs(CONFIG, "q8_0", "tiny") | WORDS, plan, tensors)
    return path


def test_what_was_written_is_read(whole: Path) -> None:
    with GGUFFile(whole) as file:
        assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b", "é"]
        assert file.metadata["tokenizer.ggml.scores"].tolist() == [0.5, -1.0, 0.0]
        assert file.metadata["general.name"] == "tiny" and file.metadata["llama.block_count"] == 1
        held, wanted = config_of(file), replace(CONFIG, rope_scaling=None)
        assert replace(held, rope_scaling=None) == replace(wanted, norm_eps=held.norm_eps)
        assert held.norm_eps == pytest.approx(CONFIG.norm_eps) and held.rope_scaling is not None
        assert file.tensors["token_embd.weight"].shape == (97, 32)
        with pytest.raises(ModelError, match=r"the key no\.such is missing"):
            file.value("no.such", int)
        with pytest.raises(ModelError, match=r"general\.name is 'tiny', of the wrong type"):
            file.value("general.name", int)


def changed(whole: Path, folder: Path, place: int, new: bytes) -> Path:
    data = bytearray(whole.read_bytes())
    data[place : place + len(new)] = new
    path = folder / "changed.gguf"
    path.write_bytes(data)
    return path


def after(whole: Path, text: bytes) -> int:
    """Where the bytes behind ``text`` begin."""
    data = whole.read_bytes()
    assert data.count(text) == 1
    return data.index(text) + len(text)


def test_each_lie_of_a_header_is_named(whole: Path, tmp_path: Path) -> None:
    place = {name: after(whole, name.encode()) for name in ("llama.block_count", "ggml.tokens", "blk.0.attn_q.weight")}
    tensor = place["blk.0.attn_q.weight"]
    huge = struct.pack("<Q", 2**63)
    for at, new, said in (
        (0, b"GGML", "no GGUF file"),
        (4, struct.pack("<I", 1), "version 1; known: 2 and 3"),
        (8, huge, "tensors, more than it can hold"),
        (16, huge, "pairs of metadata, more than it can hold"),
        (24, huge, "bytes of text, more than it can hold"),
        (32, b"\xff\xfe", "is no UTF-8"),
        (place["llama.block_count"], struct.pack("<I", 99), "metadata of the unknown type 99"),
        (place["ggml.tokens"] + 4, struct.pack("<I", 9), "an array of the type 9"),
        (place["ggml.tokens"] + 8, struct.pack("<Q", 2**40), "texts, more than it can hold"),
        (tensor, struct.pack("<I", 5), "has 5 axes"),
        (tensor + 4, struct.pack("<Q", 0), "impossible shape"),
        (tensor + 4, struct.pack("<Q", 2**47), "ends at byte"),
        (tensor + 4, struct.pack("<Q", 33), "whole blocks of 32, not of 33 numbers"),
        (tensor + 20, struct.pack("<I", 3), "is of type 3; known: f32"),
        (tensor + 24, struct.pack("<Q", 33), "no multiple of 32"),
        (tensor + 24, struct.pack("<Q", 0), "overlaps the one before"),
        (tensor + 24, struct.pack("<Q", 2**62), "ends at byte"),
    ):
        with pytest.raises(ModelError, match=said) as error:
            GGUFFile(changed(whole, tmp_path, at, new))
        assert "changed.gguf" in str(error.value)


def test_a_file_that_is_cut_off_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    data, path = whole.read_bytes(), tmp_path / "cut.gguf"
    for length in [*range(0, 2000, 37), len(data) - 5000, len(data) - 32]:
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            GGUFFile(path)


def test_an_alignment_that_is_none_is_refused(tmp_path: Path) -> None:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    for alignment, kind in ((0, "<I"), (48, "<I"), (2**31, "<I"), (1.0, "<f")):
        number = {"<I": 4, "<f": 6}[kind]
        pair = text(b"general.alignment") + struct.pack("<I", number) + struct.pack(kind, alignment)
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
        with pytest.raises(ModelError, match="must be a power of two"):
            GGUFFile(tmp_path / "x.gguf")


def test_texts_are_counted_over_all_arrays(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_read, "MAX_TEXTS", 2)
    with pytest.raises(ModelError, match="claims 3 texts"):
        GGUFFile(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "mamba"}, "unknown architecture 'mamba'"),
        ({"llama.block_count": 2}, "'blk.1.attn_norm.weight' is missing"),
        ({"llama.block_count": 100000}, "impossible layers"),
        ({"llama.feed_forward_length": 64}, r"has shape \[32, 32\], and its metadata want \[64, 32\]"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "is nan, which no model has"),
        ({"llama.attention.head_count": "4"}, "of the wrong type"),
    ],
)
def test_metadata_that_do_not_fit_the_tensors_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    plan = planned(CONFIG, "f32")
    tensors = packed(CONFIG, merged_tensors(random_decoder(CONFIG)), plan, "cpu")
    write_gguf(tmp_path / "x.gguf", model_pairs(CONFIG, "f32", "x") | change, plan, tensors)
    with GGUFFile(tmp_path / "x.gguf") as file, pytest.raises(ModelError, match=said):
        load_gguf(file)


def fuzz(whole: Path, folder: Path, times: int, seed: int) -> int:
    """Open and load files with some bytes of the header changed; returns how many still loaded."""
    draw, data, path, loaded = random.Random(seed), whole.read_bytes(), folder / "fuzzed.gguf", 0
    with GGUFFile(whole) as file:
        end = min(info.begin for info in file.tensors.values())
    for _ in range(times):
        made = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 4))):
            place = draw.randrange(end)
            fresh = draw.choice((bytes([draw.randrange(256)]), struct.pack("<Q", draw.choice((0, 2**31, 2**63 + 7)))))
            made[place : place + len(fresh)] = fresh
        if draw.random() < 0.1:
            made = made[: draw.randrange(len(made))]
        path.write_bytes(made)
        try:
            with GGUFFile(path) as file:
                load_gguf(file)
            loaded += 1
        except ModelError as error:
            assert "fuzzed.gguf" in str(error)
    return loaded


@pytest.mark.parametrize("times", [2000, pytest.param(100_000, marks=pytest.mark.long)])
def test_changed_headers_give_only_errors_of_ours(times: int, whole: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = fuzz(whole, tmp_path, times, seed=times)
    assert 0 < loaded < times, "some changes are to names and texts only, most are not"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2 * whole.stat().st_size + 64 * 2**20


def test_rows_of_q_and_k_are_where_neighbouring_pairs_turn() -> None:
    """llama.cpp turns channels 2i and 2i + 1 together, whippet i and i + E: the same scores."""
    from whippet.weights.gguf_names import arranged, restored

    generator = torch.Generator().manual_seed(0)
    name, heads, size = "model.layers.0.self_attn.q_proj.weight", CONFIG.num_heads, CONFIG.head_dim
    weight = torch.randn(heads * size, 5, generator=generator)
    assert torch.equal(restored(name, arranged(name, weight, CONFIG), CONFIG), weight)
    angles = torch.randn(size // 2, generator=generator)

    def turned(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()

    x = torch.randn(5, generator=generator)
    halves = (weight @ x).view(heads, 2, -1)
    pairs = (arranged(name, weight, CONFIG) @ x).view(heads, -1, 2)
    ours, theirs = turned(halves[:, 0], halves[:, 1]), turned(pairs[..., 0], pairs[..., 1])
    assert all(torch.allclose(one, other) for one, other in zip(ours, theirs, strict=True))
