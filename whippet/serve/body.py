"""The body of a request, within bounds of size and time, as JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.types import Receive

from whippet.serve.errors import ApiError, bad

MAX_BYTES = 4 * 2**20
MOST_READ = 4 * MAX_BYTES
"""So much of a larger body is read and thrown away, so that its sender gets to read the refusal."""
SECONDS = 30.0
"""In which a body has to arrive."""
HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")


class ClientGone(Exception):
    """The client has closed the connection; nobody is left to be answered."""


async def read_json(request: Request) -> Any:
    """The JSON of the request's body. ApiError if it is too large or too slow, no UTF-8 or no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"wanted the content-type application/json, met {kind[:60]!r}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not taken")
    length = request.headers.get("content-length", "")
    if length.isdigit() and len(length) < 20 and int(length) > MOST_READ:
        raise _too_large()
    try:
        raw = await asyncio.wait_for(_read(request.receive), SECONDS)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {SECONDS:.0f} seconds") from None
    return parse(raw)


def parse(raw: bytes) -> Any:
    """``raw`` as JSON, strictly: no NaN, no number that is infinite, no half of a UTF-16 pair."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise bad("the body is nested too deeply") from error
    except ValueError as error:
        raise bad(f"the body is not valid JSON: {str(error)[:200]}") from error
    if HALF_A_PAIR.search(raw) and _has_half(value):
        raise bad("the body holds half of a UTF-16 pair, which is no character")
    return value


async def _read(receive: Receive) -> bytes:
    raw, size = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size <= MAX_BYTES:
            raw += part
        if size > MOST_READ or (size > MAX_BYTES and not message.get("more_body", False)):
            raise _too_large()
        if not message.get("more_body", False):
            return bytes(raw)


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BYTES} bytes")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _has_half(value: Any) -> bool:
    if isinstance(value, str):
        return SURROGATE.search(value) is not None
    if isinstance(value, list):
        return any(map(_has_half, value))
    return isinstance(value, dict) and any(_has_half(one) for pair in value.items() for one in pair)
