"""Every family, tiny and random, with every feature that it has switched on, against transformers: logits of short and
long documents, alone, packed and with a cache; gradients of every weight; the number of weights; what is written back.

Lengths cross the window (24, Phi-3's 50) and LongRoPE's border (40).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import FAMILIES, logits, oracle, stream, to_v4

from whippet.data.batches import Batch
from whippet.errors import ModelError
from whippet.model.cache import KVCache
from whippet.model.decoder import Decoder
from whippet.model.families import REMOTE_CODE, config_from_hf, config_to_hf
from whippet.model.rope import inverse_frequencies
from whippet.model.size import parameters
from whippet.train.objectives import sft
from whippet.weights.load import load_decoder, read_config
from whippet.weights.merge import merged_tensors
from whippet.weights.names import table

LENGTHS = (5, 39, 40, 41, 90)


def ids(count: int = sum(LENGTHS)) -> torch.Tensor:
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(1))


class Case:
    """A model of transformers, and ours from its checkpoint."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.theirs = name, folder, oracle(name)
        self.theirs.save_pretrained(folder)
        self.ours: Decoder = load_decoder(folder)

    def wanted(self, document: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scores: torch.Tensor = self.theirs(document[None]).logits[0]
        return scores

    def separate(self) -> torch.Tensor:
        return torch.cat([self.wanted(document) for document in ids().split(list(LENGTHS))])


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def close(met: torch.Tensor, wanted: torch.Tensor, within: float = 1e-6) -> bool:
    return bool((met - wanted).abs().max() <= within * wanted.abs().max())


def test_logits_of_each_document(case: Case) -> None:
    for document in ids().split(list(LENGTHS)):
        assert close(logits(case.ours, document), case.wanted(document))


def test_the_loss_that_is_trained(case: Case) -> None:
    """Cross-entropy of these logits, capped where they are."""
    labels = ids().flip(0)
    batch = Batch(ids(), *stream(*LENGTHS)[:2], labels, torch.ones(len(labels)), max(LENGTHS), len(LENGTHS))
    with torch.no_grad():
        met = sft.loss(case.ours, batch, 50).loss_sum
    wanted = torch.nn.functional.cross_entropy(case.separate(), labels, reduction="sum")
    assert torch.isclose(met, wanted, rtol=2e-6)


def test_logits_of_a_packed_stream(case: Case) -> None:
    """Each document as if it were alone; of LongRoPE too, where transformers would look at the longest of a batch."""
    assert close(logits(case.ours, ids(), *LENGTHS), case.separate())


def test_both_spellings_are_read(case: Case, tmp_path: Path) -> None:
    text = (case.folder / "config.json").read_text()
    assert "rope_parameters" in text
    (tmp_path / "config.json").write_text(text)
    to_v4(tmp_path)
    assert read_config(tmp_path)[0] == case.ours.config


def test_with_a_cache(case: Case) -> None:
    """Ragged prompts, then a token a row, then several: rows cross every border at different times."""
    rows = [ids(70), ids(70).flip(0), ids(71)[1:]]
    cache = KVCache(case.ours.config, 3, 16, dtype=torch.float32, device="cpu")
    places = [0, 0, 0]

    def run(*counts: int) -> None:
        if max(counts) + cache.longest > cache.capacity:
            cache.grow(2 * cache.capacity)
        spans = [slice(place, place + count) for place, count in zip(places, counts, strict=True)]
        tokens = torch.cat([row[span] for row, span in zip(rows, spans, strict=True)])
        positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        _, borders, longest = stream(*counts)
        with torch.no_grad():
            hidden = case.ours(tokens, positions, borders, longest, cache=cache)
            met = case.ours.logits(hidden).split(list(counts))
        for index, (span, scores) in enumerate(zip(spans, met, strict=True)):
            # Of several new tokens the last: had transformers got fewer, it might have turned them otherwise.
            # Sums over other numbers of keys round otherwise, by 2e-6 here.
            assert close(scores[-1], case.wanted(rows[index][: span.stop])[-1], 5e-6), (index, span)
            places[index] = span.stop

    run(10, 3, 15)
    for _ in range(26):
        run(1, 1, 1)
    run(2, 20, 9)
    cache.select(torch.tensor([0, 1, 2]))
    for _ in range(5):
        run(1, 1, 1)


@pytest.mark.parametrize("case", ["gemma2"], indirect=True)
def test_embeddings_are_scaled_in_the_compute_dtype(case: Case) -> None:
    """As transformers does: by the root of the width, rounded first. Of 72 that is 8.485, and 8.5 in bf16."""
    theirs = oracle(case.name, hidden_size=72, num_hidden_layers=1).bfloat16().get_input_embeddings()
    decoder = Decoder(replace(case.ours.config, hidden_size=72), device="cpu", compute_dtype=torch.bfloat16)
    with torch.no_grad():
        decoder.embedding.copy_(theirs.weight)
        assert torch.equal(decoder.embed(ids()), theirs(ids()))


def test_gradients_of_every_weight(case: Case, tmp_path: Path) -> None:
    decoder = load_decoder(case.folder, trainable=True)
    weights = torch.randn(sum(LENGTHS), 97, generator=torch.Generator().manual_seed(2))
    (decoder.logits(decoder(ids(), *stream(*LENGTHS))) * weights).sum().backward()
    case.theirs.zero_grad()
    for document, rows in zip(ids().split(list(LENGTHS)), weights.split(list(LENGTHS)), strict=True):
        (case.theirs(document[None]).logits[0] * rows).sum().backward()
    wanted = {name: parameter.grad for name, parameter in case.theirs.named_parameters()}
    ours = dict(decoder.named_parameters())
    met = {name: grad for entry in table(decoder.config) for name, grad in entry.split(ours[entry.ours].grad)}
    assert set(met) == set(wanted)
    for name, gradient in met.items():
        assert wanted[name].abs().max() > 1e-3, name
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def test_the_number_of_weights(case: Case) -> None:
    """Of the checkpoint, and of what is held; the config tells it."""
    assert parameters(case.ours.config) == sum(p.numel() for p in case.theirs.parameters())
    assert parameters(case.ours.config) == sum(p.numel() for p in case.ours.parameters())


def test_what_is_written_back_is_what_transformers_reads(case: Case, tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import save_file

    save_file(dict(merged_tensors(case.ours)), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(
        json.dumps(config_to_hf(case.ours.config, dtype="float32", extra={"pad_token_id": None}))
    )
    assert read_config(tmp_path)[0] == case.ours.config
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for document in ids().split(list(LENGTHS)):
        with torch.no_grad():
            assert torch.equal(again.eval()(document[None]).logits[0], case.wanted(document))


YARN: dict[str, dict[str, Any]] = {
    "as Qwen has it": {"factor": 4.0, "original_max_position_embeddings": 32768},
    "by the ratio of contexts": {"factor": 32768 / 4096, "original_max_position_embeddings": 4096},
    "as DeepSeek has it": {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.707,
                           "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1},
    "whole": {"factor": 3.0, "original_max_position_embeddings": 100, "truncate": False, "beta_fast": 5.0},
    "borders that meet": {"factor": 3.0, "original_max_position_embeddings": 6},
    "a border beyond the last channel": {"factor": 2.0, "original_max_position_embeddings": 1000, "rope_theta": 10.0},
    "told": {"factor": 8.0, "original_max_position_embeddings": 2048, "attention_factor": 1.3},
}  # fmt: skip


@pytest.mark.parametrize("kind", YARN)
@pytest.mark.parametrize("spelt", ["type", "rope_type"])
def test_frequencies_of_yarn(kind: str, spelt: str) -> None:
    """Those of transformers to the bit, and its factor, by whatever keys a config has."""
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    table = YARN[kind] | {spelt: "yarn"}
    shape = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768}
    theirs = transformers.Qwen2Config(**shape, rope_theta=1e6, rope_scaling=dict(table))
    wanted, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, None)
    raw = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 9, "intermediate_size": 8,
           "num_hidden_layers": 1, "rope_theta": 1e6, "rope_scaling": table, **shape}  # fmt: skip
    config = config_from_hf(raw, where="x")
    assert config.rope_scaling is not None and config.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-12)
    assert torch.equal(inverse_frequencies(config)[0], wanted)
    stretched = int(table["factor"] * table["original_max_position_embeddings"])
    assert config.context == max(32768, stretched)
    assert config_from_hf(config_to_hf(config, dtype="float32"), where="x") == config


WITHOUT_EFFECT = {
    "use_cache", "initializer_range", "torch_dtype", "max_position_embeddings", "hidden_act", "rope_parameters",
    "partial_rotary_factor", "original_max_position_embeddings",
}  # fmt: skip
"""Keys that may change no logit of some family; those that are read have tests of their own."""
EFFECT_IN = {"original_max_position_embeddings": ("phi3",), "hidden_act": ("mistral", "qwen2-windows", "qwen3", "phi3")}


class Watched(dict[str, Any]):
    """A config that knows which of its keys were asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


def flipped(value: Any, key: str) -> Any:
    """Another value of the same kind; for what is off, something that is on."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return {"rms_norm_eps": 100 * value, "attention_dropout": 0.1}.get(key, type(value)(2 * value))
    if isinstance(value, list):
        kinds = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
        return [kinds.get(one, "other") if isinstance(one, str) else 1.5 * one for one in value]
    if value is None:
        return {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "sliding_window": 8}.get(key, 2.0)
    return "other"


ABSENT = {
    "layer_types": ["full_attention", "sliding_attention"], "use_bidirectional_attention": True,
    "attn_logit_softcapping": 2.0, "attention_bias": True, "resid_pdrop": 0.1, "embd_pdrop": 0.1,
    "partial_rotary_factor": 0.5, "rope_parameters": {"full_attention": {"rope_type": "dynamic"}},
    "original_max_position_embeddings": 7,
}  # fmt: skip
"""Keys that are read, and not written since they must say nothing: what they could say."""


def flips(config: dict[str, Any], asked: set[str]) -> dict[str, dict[str, Any]]:
    """For each key, and each of the table of rotary embeddings, a config in which it differs."""
    found = {key: config | {key: flipped(value, key)} for key, value in config.items() if not isinstance(value, dict)}
    for key, value in (config["rope_scaling"] or {}).items():
        found[f"rope_scaling.{key}"] = config | {"rope_scaling": config["rope_scaling"] | {key: flipped(value, key)}}
    found |= {key: config | {key: ABSENT[key]} for key in asked & set(ABSENT) - set(config)}
    for key, value in (("max_window_layers", 0), ("sliding_window_pattern", 2)):
        if key in asked:  # layer_types wins over what older configs say
            found[key] = {k: v for k, v in config.items() if k != "layer_types"} | {key: value}
    return found


def test_every_key_that_is_read_matters(case: Case, tmp_path: Path) -> None:
    """Flip it: logits change, or it is refused."""
    config = config_to_hf(case.ours.config, dtype="float32")
    watched = Watched(config)
    config_from_hf(watched, where="x")
    tried = flips(config, watched.asked)
    assert watched.asked - set(REMOTE_CODE) - {"rope_scaling"} <= set(tried)
    wanted = logits(case.ours, ids(), *LENGTHS)
    (tmp_path / "model.safetensors").symlink_to(case.folder / "model.safetensors")
    for key, changed in tried.items():
        if key in WITHOUT_EFFECT and case.name not in EFFECT_IN.get(key, ()):
            continue
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            met = logits(load_decoder(tmp_path), ids(), *LENGTHS)
        except ModelError:
            continue
        assert (met - wanted).abs().max() > 1e-5, key
