"""The header of a safetensors file, checked before a byte of it is used.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes with the header's length, little-endian; the header,
JSON that gives each tensor's dtype, shape and place; the data. Places must lie within the file, fit shape and dtype,
and fill the data without gap or overlap. In: a path. Out: what each tensor is. Raises ModelError that names the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whippet.errors import ModelError
from whippet.paths import within
from whippet.weights.files import parse_json

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000
"""The limit that the format itself sets."""
TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
ADVICE = "Convert it to safetensors where it comes from (save_pretrained of transformers writes that)"
CONVERTIBLE = re.compile(r"pytorch_model.*\.bin|consolidated\.\d+\.pth", re.ASCII)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, as the header describes it."""

    dtype: str
    """The format's name, such as ``BF16``."""
    shape: tuple[int, ...]
    nbytes: int
    begin: int = field(default=0, compare=False)
    """Where its bytes begin in the file."""


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of the file, by name."""
    within(path.parent, path, error=ModelError)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            refuse_pickle(path, start)
            if len(start) < 8:
                raise ModelError(f"{path}: {size} bytes, too short for a safetensors file; download it again")
            length = int.from_bytes(start, "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ModelError(
                    f"{path}: its header claims {length:,} bytes and the file has {size:,}: cut off, or no safetensors "
                    "file; download it again"
                )
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    tensors = _check(parse_json(raw, f"{path}: header"), 8 + length, size - 8 - length, path)
    # Python reads -0 as the natural number 0, safetensors refuses it; what we read, every reader must read alike.
    if b"-0" in raw and b"-0" in TEXTS.sub(b"", raw):
        raise ModelError(f"{path}: header: holds -0; wanted natural numbers only")
    return tensors


def refuse_pickle(path: Path, start: bytes) -> None:
    """Raise ModelError if the name or the first bytes are those of a pickle, or of the archive that torch puts it in.

    Protocols 2 and later open with 0x80 and the protocol's number, 4 and later then with 0x95 and the length of a
    frame. Older ones open with text, and fail the header's check, as any other file does.
    """
    pickled = len(start) >= 2 and start[0] == 0x80 and start[1] <= 5
    # The length of an honest header may also begin 0x80 0x05; its high bytes are zeros then. So are those of a short
    # frame's length, so that a frame counts whatever follows. (Six lengths up to the limit spell 0x80 0x04 0x95 and six
    # 0x80 0x05 0x95, the first 9,766,016 bytes: a header of one of these is refused too.)
    framed = start[:3] in (b"\x80\x04\x95", b"\x80\x05\x95")
    pickled = pickled and (framed or not (len(start) == 8 and start[4:] == b"\0\0\0\0"))
    zipped = start[:4] in (b"PK\x03\x04", b"PK\x05\x06")
    if zipped or pickled or path.suffix in PICKLE_SUFFIXES:
        raise ModelError(said_of_pickle(path))


def said_of_pickle(path: Path) -> str:
    """Why it is refused, and what to do."""
    reason = f"{path}: a pickle, which can run code when read, so whippet never"
    if CONVERTIBLE.fullmatch(path.name):
        return f"{reason} loads one; run: whippet convert {path.parent} --out DIR"
    return f"{reason} opens one. {ADVICE}"


def _check(header: dict[str, Any], data_begin: int, data_bytes: int, path: Path) -> dict[str, TensorInfo]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: __metadata__ must map text to text")
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        info, begin = _entry(name, entry, path)
        tensors[name] = replace(info, begin=data_begin + begin)
        places.append((begin, begin + info.nbytes, name))
    # Before gaps and overlaps: a download that broke off is the likeliest fault, and how much is missing tells it best.
    wanted_bytes = max((end for _, end, _ in places), default=0)
    if wanted_bytes != data_bytes:
        raise ModelError(
            f"{path}: its tensors take {wanted_bytes:,} bytes and the file holds {data_bytes:,}: cut off or damaged; "
            "download it again"
        )
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached:
            fault = "overlaps the one before" if begin < reached else "leaves a gap before it"
            raise ModelError(f"{path}: tensor {name!r} {fault} (at byte {begin:,}, expected {reached:,})")
        reached = end
    return tensors


def _entry(name: str, entry: Any, path: Path) -> tuple[TensorInfo, int]:
    """One entry of the header, and where its data begin."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{path}: tensor {name!r} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ModelError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > 8:
        raise ModelError(f"{path}: tensor {name!r} has the impossible shape {str(shape)[:60]}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise ModelError(f"{path}: tensor {name!r} has the impossible data_offsets {str(offsets)[:60]}")
    nbytes = ITEM_BYTES[dtype]
    for extent in shape:
        nbytes *= extent
    if offsets[1] - offsets[0] != nbytes:
        raise ModelError(f"{path}: tensor {name!r} of {dtype} {shape} takes {nbytes:,} bytes, not those of {offsets}")
    return TensorInfo(dtype, tuple(shape), nbytes), offsets[0]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)
