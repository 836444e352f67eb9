"""A small byte-level tokenizer with a ChatML template, and renderers on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_infer import write_checkpoint

from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("data") / "model", context=2048)


@pytest.fixture(scope="session")
def renderer(tiny_model: Path) -> Renderer:
    return make_renderer(Tokenizer.load(tiny_model), None)
