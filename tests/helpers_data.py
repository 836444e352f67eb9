"""Where the real files for testing lie, beside the checkout; tests that need them skip where they are absent."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(*parts: str) -> Path:
    """The path of a real file, or a skip that says which one is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{'/'.join(parts)}, which this checkout does not have")
    return path


def shared_bytes(*parts: str) -> bytes:
    """The content of a real file, unzipped if it ends in .gz."""
    path = shared(*parts)
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
