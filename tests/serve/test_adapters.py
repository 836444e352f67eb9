"""Several adapters beside one model: the request's ``model`` chooses, and each answers as it would alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers_serve import Running, running

import whippet
from whippet import lora
from whippet.demo import MODEL
from whippet.errors import UsageError
from whippet.options import LoraOptions
from whippet.serve.start import serve_model
from whippet.weights.adapter import save_adapter
from whippet.weights.load import load_decoder

QUESTIONS = ("What is 37 + 45?", "Colour of banana dog?", "Sort these numbers: 52, 7, 31")


def write(folder: Path, seed: int, rank: int) -> Path:
    """A random adapter that changes what the bundled model says."""
    decoder = load_decoder(MODEL, base="fp32", device="cpu")
    options = LoraOptions(r=rank, alpha=2.0 * rank)
    lora.attach(decoder, options, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora.adapter_parameters(decoder).items():
            if name.endswith(".b"):
                parameter.normal_(0, 0.1, generator=generator)
    save_adapter(decoder, options, folder, str(MODEL))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = tmp_path_factory.mktemp("adapters")
    return {name: str(write(made / name, seed, rank)) for name, seed, rank in (("one", 1, 4), ("two", 2, 8))}


@pytest.fixture(scope="module")
def several(folders: dict[str, str]) -> Iterator[Running]:
    model = whippet.load(MODEL, base="fp32", device="cpu")
    with running(serve_model(model, name="tiny", adapters=folders, max_rows=8)) as made:
        yield made


def test_each_answers_as_it_would_alone(several: Running, folders: dict[str, str]) -> None:
    paths = {"tiny": None, **folders}
    alone = {name: whippet.load(MODEL, base="fp32", device="cpu", adapter=path) for name, path in paths.items()}
    asked = [(name, question) for question in QUESTIONS for name in paths]
    wanted = [alone[name].chat(question, temperature=0, max_new_tokens=12).content for name, question in asked]
    assert len(set(wanted)) > len(QUESTIONS), "the adapters change nothing"
    with ThreadPoolExecutor(9) as pool:
        told = list(pool.map(lambda one: several.chat(one[1], model=one[0], max_tokens=12)[1], asked))
    assert [reply["choices"][0]["message"]["content"] for reply in told] == wanted
    assert [reply["model"] for reply in told] == [name for name, _ in asked]


def test_they_are_listed(several: Running) -> None:
    assert [model.id for model in several.client().models.list()] == ["tiny", "one", "two"]
    status, told = several.chat(model="three")
    assert status == 404 and "there are: tiny, one, two" in told["error"]["message"]


def test_names_that_are_the_same(folders: dict[str, str]) -> None:
    model = whippet.load(MODEL, base="fp32", device="cpu")
    with pytest.raises(UsageError, match="two of the names one, one, two are the same"):
        serve_model(model, name="one", adapters=folders)
