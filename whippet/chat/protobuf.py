"""Protocol Buffers' wire format, as far as a tokenizer's file needs it; every length is checked before it is used.

Comes in: the bytes of one message. Goes out: its fields. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from whippet.errors import ModelError

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
MAX_VARINT_BYTES = 10

Value = int | bytes


def fields(raw: bytes, where: str) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of the message ``raw``, in the order of the file.

    A varint comes as an int (unsigned, 64 bit), everything else as its bytes: 4, 8, or as many as the field says.
    ModelError names ``where`` if the message is cut off or no message at all.
    """
    position, end = 0, len(raw)
    while position < end:
        key, position = _varint(raw, position, where)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ModelError(f"{where} is damaged: byte {position} names field 0, which no message has")
        if wire == VARINT:
            value, position = _varint(raw, position, where)
            yield number, value
            continue
        if wire == LENGTH:
            length, position = _varint(raw, position, where)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if wire == EIGHT_BYTES else 4
        else:
            raise ModelError(f"{where} is damaged: field {number} at byte {position} has the unknown wire type {wire}")
        if length > end - position:
            raise ModelError(f"{where} is cut off: field {number} wants {length} bytes and {end - position} are left")
        yield number, raw[position : position + length]
        position += length


def text(value: Value, where: str) -> str:
    """A field that holds text."""
    try:
        return _bytes(value, where).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{where} is damaged: a text is not UTF-8 ({error})") from error


def message(value: Value, where: str) -> bytes:
    """A field that holds bytes, or a message within the message."""
    return _bytes(value, where)


def number(value: Value, where: str) -> int:
    """A field that holds an int32, an enum or a bool (0 or 1)."""
    if not isinstance(value, int):
        raise ModelError(f"{where} is damaged: a number is stored as {len(value)} bytes")
    return value - (1 << 64) if value >> 63 else value


def float32(value: Value, where: str) -> float:
    """A field that holds a float."""
    raw = _bytes(value, where)
    if len(raw) != 4:
        raise ModelError(f"{where} is damaged: a float has {len(raw)} bytes, wanted 4")
    return float(struct.unpack("<f", raw)[0])


def _bytes(value: Value, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise ModelError(f"{where} is damaged: the number {value} stands where a text or a message belongs")
    return value


def _varint(raw: bytes, position: int, where: str) -> tuple[int, int]:
    """The value, and the place after it: 7 bits a byte, lowest first, the highest bit says that more follow."""
    value = 0
    for count in range(MAX_VARINT_BYTES):
        if position + count >= len(raw):
            raise ModelError(f"{where} is cut off: it ends within a number at byte {position}")
        byte = raw[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + count + 1
    raise ModelError(f"{where} is damaged: a number at byte {position} has more than {MAX_VARINT_BYTES} bytes")
