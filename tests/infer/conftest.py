"""What the tests of inference share: a tiny decoder, and a tiny checkpoint loaded as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_infer import make_decoder, write_checkpoint

import whippet
from whippet.infer.model import Model
from whippet.model.decoder import Decoder


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return make_decoder()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Model:
    return whippet.load(checkpoint, base="fp32", device="cpu")
