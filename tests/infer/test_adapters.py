"""Several adapters beside one model, in one batch, against each laid over the model alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_batching import AsOnGpu, answers, asked, bare, plain, prompt_of, scores, small_pages, tokens
from helpers_infer import make_decoder

from whippet import lora
from whippet.errors import ModelError, UsageError
from whippet.infer.adapters import load_beside
from whippet.infer.batching import Batcher
from whippet.infer.requests import Request
from whippet.infer.sampling import Sampling
from whippet.model.decoder import Decoder
from whippet.options import LoraOptions
from whippet.weights.adapter import CONFIG, load_adapter, save_adapter

KINDS = {
    "law": LoraOptions(r=4, alpha=8),
    "poems": LoraOptions(r=9, alpha=6, rslora=True, targets=("q_proj", "v_proj", "down_proj")),
    "numbers": LoraOptions(r=1, alpha=2, targets=("k_proj", "gate_proj", "o_proj")),
}
NAMES = [None, *KINDS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random adapters on disk, that change much."""
    found = {}
    for seed, (name, options) in enumerate(KINDS.items()):
        decoder, draw = make_decoder(), torch.Generator().manual_seed(seed)
        lora.attach(decoder, options, seed)
        with torch.no_grad():
            for parameter in lora.adapter_parameters(decoder).values():
                parameter.normal_(0, 0.2, generator=draw)
        found[name] = tmp_path_factory.mktemp(name)
        save_adapter(decoder, options, found[name], "base")
    return found


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str | None, Decoder]:
    """The model with each of them laid over it, and without any."""
    found: dict[str | None, Decoder] = {None: make_decoder()}
    for name, folder in folders.items():
        found[name] = make_decoder()
        load_adapter(found[name], folder)
    return found


@pytest.fixture
def beside(folders: dict[str, Path]) -> Decoder:
    decoder = make_decoder()
    assert load_beside(decoder, folders) == list(KINDS)
    return decoder


def test_each_token_has_the_adapter_that_it_chose(beside: Decoder, alone: dict[str | None, Decoder]) -> None:
    """Four documents in one stream, one of them without."""
    prompts = [prompt_of(length, length) for length in (5, 8, 1, 11)]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids_T = torch.tensor([token_id for prompt in prompts for token_id in prompt])
    places_T = torch.cat([torch.arange(length) for length in lengths])
    borders = torch.tensor([0, *lengths.cumsum(0)], dtype=torch.int32)
    wanted = torch.tensor([2, 0, 3, 1]).repeat_interleave(lengths).int()
    with torch.no_grad(), beside.choosing(wanted):
        hidden_TH = beside(ids_T, places_T, borders, 11)
    found_BV = beside.logits(hidden_TH[borders[1:].long() - 1])
    for row, (prompt, choice) in enumerate(zip(prompts, (2, 0, 3, 1), strict=True)):
        expected_V = scores(alone[NAMES[choice]], prompt)[0]
        assert (found_BV[row] - expected_V).abs().max() <= 1e-5 * expected_V.abs().max()
        assert choice == 0 or (scores(alone[None], prompt)[0] - expected_V).abs().max() > 1


def test_outside_a_choice_the_model_answers_as_before(beside: Decoder, alone: dict[str | None, Decoder]) -> None:
    assert torch.equal(scores(beside, prompt_of(9)), scores(alone[None], prompt_of(9)))
    with beside.choosing(torch.ones(9, dtype=torch.int32)):
        assert not torch.equal(scores(beside, prompt_of(9)), scores(alone[None], prompt_of(9)))
    assert torch.equal(scores(beside, prompt_of(9)), scores(alone[None], prompt_of(9)))


@pytest.mark.parametrize("kind", [Batcher, AsOnGpu])
def test_a_batch_of_all_equals_each_alone(
    beside: Decoder, alone: dict[str | None, Decoder], kind: type[Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pages(monkeypatch)
    requests = [
        asked(prompt_of(5 + place, place), Sampling(14, temperature=temperature, seed=3), adapter=name, logprobs=True)
        for temperature in (0.0, 0.8)
        for place, name in enumerate(NAMES)
    ]
    batcher = kind(beside, max_rows=6, cache_tokens=80, adapters=list(KINDS))
    for request, events in zip(requests, answers(batcher, requests, [0, 0, 2, 2, 3, 3, 3, 20]), strict=True):
        decoder, ids = alone[request.adapter], list(request.prompt)
        assert bare(events) == plain(decoder, replace(request, logprobs=False))
        for event in events:
            assert event.drawn is not None
            expected = float(scores(decoder, ids)[0].log_softmax(-1)[event.drawn.id])
            assert event.drawn.logprob == pytest.approx(expected, abs=1e-4)
            ids.append(event.drawn.id)


def test_what_one_adapter_left_in_the_cache_is_of_no_use_to_another(
    beside: Decoder, alone: dict[str | None, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pages(monkeypatch)
    batcher = Batcher(beside, cache_tokens=400, adapters=list(KINDS))

    def request(name: str | None) -> Request:
        return asked(prompt_of(13), Sampling(5), adapter=name)

    for cached in (0, 12):
        for name in NAMES:
            (events,) = answers(batcher, [request(name)])
            assert events[0].cached == cached
            assert tokens(events) == tokens(plain(alone[name], request(name)))


@pytest.mark.parametrize(("key", "value", "said"), [("use_dora", True, "DoRA"), ("modules_to_save", ["lm_head"], None)])
def test_what_changes_weights_that_all_share_is_refused(
    folders: dict[str, Path], tmp_path: Path, key: str, value: object, said: str | None
) -> None:
    for path in folders["law"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {key: value}))
    decoder = make_decoder()
    with pytest.raises(UsageError, match=f"adapter odd .{tmp_path}. has {said or key}, .* merge it first"):
        load_beside(decoder, {"law": folders["law"], "odd": tmp_path})


def test_a_model_with_an_adapter_over_it_takes_none_beside(folders: dict[str, Path]) -> None:
    decoder = make_decoder()
    load_adapter(decoder, folders["law"])
    with pytest.raises(UsageError, match="has an adapter laid over it already"):
        load_beside(decoder, {"poems": folders["poems"]})


def test_a_folder_that_holds_none_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises((ModelError, UsageError), match=str(tmp_path / "nowhere")):
        load_beside(make_decoder(), {"law": folders["law"], "other": tmp_path / "nowhere"})
