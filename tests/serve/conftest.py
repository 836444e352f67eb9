"""What the tests of the server share: the bundled model, served; it is started once and only asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers_serve import Running, running

import whippet
from whippet.demo import MODEL
from whippet.infer.model import Model

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="session")
def tiny() -> Model:
    return whippet.load(MODEL, base="fp32", device="cpu")


@pytest.fixture(scope="session")
def server(tiny: Model) -> Iterator[Running]:
    from whippet.serve.start import serve_model

    with running(serve_model(tiny, name="tiny", max_rows=16, max_waiting=256)) as made:
        yield made
