"""The header of a safetensors file: every lie is found, and nothing else is raised than a ModelError."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from whippet.errors import ModelError
from whippet.weights.header import TensorInfo, read_header

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(0, 4),
    "d": torch.tensor(3, dtype=torch.uint8),
}


def honest(path: Path) -> bytes:
    save_file(TENSORS, path, {"format": "pt"})
    return path.read_bytes()


def rebuilt(header: Any, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_an_honest_file(tmp_path: Path) -> None:
    honest(tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert found == {
        "a": TensorInfo("F32", (2, 3), 24),
        "b": TensorInfo("BF16", (5,), 10),
        "c": TensorInfo("F32", (0, 4), 0),
        "d": TensorInfo("U8", (), 1),
    }


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "overlap": ({"b": {"dtype": "BF16", "shape": [5], "data_offsets": [20, 30]}}, "overlaps"),
    "gap": ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, "gap"),
    "beyond the end": (
        {"b": {"dtype": "BF16", "shape": [500], "data_offsets": [24, 1024]}},
        "take 1,024 bytes and the file holds 35: cut off",
    ),
    "wrong size": ({"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]}}, "takes 32 bytes"),
    "backwards": ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]}}, "takes 24 bytes"),
    "negative": ({"a": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}}, "impossible shape"),
    "overflow": ({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 24]}}, "takes"),
    "huge": ({"a": {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 2**65]}}, "impossible"),
    "a fraction": ({"a": {"dtype": "F32", "shape": [2.0, 3], "data_offsets": [0, 24]}}, "impossible shape"),
    "a truth": ({"a": {"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}}, "impossible shape"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24, 24]}}, "data_offsets"),
    "unknown dtype": ({"a": {"dtype": "F31", "shape": [2, 3], "data_offsets": [0, 24]}}, "unknown dtype"),
    "a list for a dtype": ({"a": {"dtype": [], "shape": [2, 3], "data_offsets": [0, 24]}}, "unknown dtype"),
    "no dtype": ({"a": {"shape": [2, 3], "data_offsets": [0, 24]}}, "needs dtype"),
    "not a table": ({"a": 7}, "needs dtype"),
    "metadata": ({"__metadata__": {"x": 1}}, "__metadata__"),
    "metadata list": ({"__metadata__": []}, "__metadata__"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header, data = parts(honest(path))
    change, words = LIES[lie]
    path.write_bytes(rebuilt(header | change, data))
    with pytest.raises(ModelError, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "too short"),
        (b"\x01\x00", "too short"),
        ((10**18).to_bytes(8, "little"), "claims"),
        (rebuilt(b"[]", b""), "wanted an object"),
        (rebuilt(b"{", b""), "not valid JSON"),
        (rebuilt(b"\xff\xfe", b""), "not valid JSON"),
        (rebuilt(b'{"a": 1, "a": 1}', b""), "comes twice"),
        (rebuilt(b"[" * 100_000, b""), "nested too deeply|not valid JSON"),
        (rebuilt(b'{"a":' * 50_000, b""), "nested too deeply|not valid JSON"),
        (rebuilt(b"9" * 10_000, b""), "not valid JSON"),
        (b"PK\x03\x04" + b"\0" * 60, "pickle"),
        (b"\x80\x02}q\x00X\x06\x00\x00\x00weight", "pickle"),
        (b"\x80\x04\x95\x20\x00\x00\x00\x00\x00\x00\x00}", "pickle"),
        (b"\x80\x05\x95\x20\x00\x00\x00\x00\x00\x00\x00}", "pickle"),
        (b"\x80\x04\x95\x20\x00\x00\x01\x00\x00\x00\x00}", "pickle"),
        (rebuilt(b'{"a": {"dtype": "U8", "shape": [-0], "data_offsets": [0, 0]}}', b""), "-0"),
        (rebuilt(b'{"\\"-0": {"dtype": "U8", "shape": [0], "data_offsets": [0, -0]}}', b""), "-0"),
    ],
)
def test_other_files_are_refused(raw: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [0x280, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header, data = parts(honest(path))
    path.write_bytes(rebuilt(json.dumps(header).encode().ljust(length), data))
    assert set(read_header(path)) == set(TENSORS)


def test_a_name_may_hold_what_a_number_may_not(tmp_path: Path) -> None:
    save_file({"a-0": torch.zeros(2), 'b "[-0]\\': torch.zeros(1)}, tmp_path / "x.safetensors")
    assert set(read_header(tmp_path / "x.safetensors")) == {"a-0", 'b "[-0]\\'}


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    raw = honest(path)
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(ModelError):
            read_header(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(ModelError, match="cut off or damaged"):
        read_header(path)


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """A few bytes of the header changed, inserted, dropped or doubled, or a number in it replaced."""
    length = int.from_bytes(raw[:8], "little")
    body = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(len(body), 8 + length)) if draw.random() < 0.9 else draw.randrange(8)
        kind = draw.randrange(5)
        if kind == 0:
            body[at] = draw.randrange(256)
        elif kind == 1:
            body[at:at] = draw.choice([b"9", b"-", b"[", b"{", b'"', b"\0", b"e9", b"\xff", b"null"])
        elif kind == 2:
            del body[at : at + draw.randint(1, 9)]
        elif kind == 3:
            body[at:at] = body[at : at + draw.randint(1, 30)]
        else:
            body[at : at + 2] = draw.choice([b"99", b"0,", b"1e", b"-1", b"]]"])
        if len(body) < 16:
            break
    if draw.random() < 0.7:
        body[:8] = max(0, length + len(body) - len(raw)).to_bytes(8, "little")
    return bytes(body)


def fuzz(path: Path, count: int, seed: int) -> None:
    """What our reader accepts, safetensors' own must accept too, with the same content."""
    from safetensors import SafetensorError, deserialize

    raw = honest(path)
    draw = random.Random(seed)
    refused = 0
    for _ in range(count):
        case = mutated(raw, draw)
        path.write_bytes(case)
        try:
            found = read_header(path)
        except ModelError:
            refused += 1
            continue
        try:
            theirs = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in deserialize(case)}
        except SafetensorError:
            raise AssertionError(f"only ours reads {case!r}") from None
        assert {name: (info.dtype, info.shape) for name, info in found.items()} == theirs
    assert refused > count // 2


def test_1000_mutated_headers(tmp_path: Path) -> None:
    fuzz(tmp_path / "x.safetensors", 1000, seed=0)


@pytest.mark.long
def test_100000_mutated_headers(tmp_path: Path) -> None:
    fuzz(tmp_path / "x.safetensors", 100_000, seed=1)
