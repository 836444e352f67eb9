"""Reading back: each thing that can be wrong in a folder is found and named; how far two models are apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_infer import make_decoder, write_checkpoint
from safetensors.torch import load_file, save_file

from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import GateError
from whippet.export import export
from whippet.report.compare import Comparison, compare
from whippet.verify import Ledger, check_tensors, check_words, digest, probe_logits, probes


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Ledger, Renderer]:
    base = write_checkpoint(tmp_path / "base")
    out = export(base, "hf", tmp_path / "out", dtype="fp32", device="cpu").out
    ledger = Ledger()
    list(ledger.watched(load_file(out / "model.safetensors").items()))
    return out, ledger, make_renderer(Tokenizer.load(base), None)


def test_a_good_folder_passes(exported: tuple[Path, Ledger, Renderer]) -> None:
    out, ledger, renderer = exported
    check_tensors(out, ledger)
    check_words(out, renderer, None)
    assert ledger.num_parameters == 112_448


@pytest.mark.parametrize("fault", ["missing", "extra", "bit", "dtype"])
def test_a_wrong_tensor_is_found(exported: tuple[Path, Ledger, Renderer], fault: str) -> None:
    out, ledger, _ = exported
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.ones(2)
    elif fault == "bit":
        tensors[name].view(torch.int32)[3, 5] ^= 1
    else:
        tensors[name] = tensors[name].view(torch.int32)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(GateError, match="up_proj"):
        check_tensors(out, ledger)


@pytest.mark.parametrize("fault", ["template in the config", "template beside it", "end token", "bos", "merges"])
def test_a_wrong_word_is_found(exported: tuple[Path, Ledger, Renderer], fault: str) -> None:
    out, _, renderer = exported

    def change(name: str, **values: Any) -> None:
        path = out / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    if fault == "template in the config":
        change("tokenizer_config.json", chat_template="{{ messages }}")
    elif fault == "template beside it":
        (out / "chat_template.jinja").write_text("{{ messages }}")
    elif fault == "end token":
        change("generation_config.json", eos_token_id=1)
    elif fault == "bos":
        change("tokenizer_config.json", bos_token="<pad>")
    else:
        core = json.loads((out / "tokenizer.json").read_text())
        core["model"]["merges"] = []
        (out / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(GateError):
        check_words(out, renderer, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stops_the_writer(value: float) -> None:
    with pytest.raises(GateError, match="w holds values that are not finite"):
        list(Ledger().watched([("w", torch.tensor([1.0, value]))]))


def test_a_digest_knows_dtype_shape_and_every_byte() -> None:
    one = torch.zeros(4, 6)
    others = [
        one.view(6, 4),
        one.view(torch.int32),
        one + 1e-45,
        torch.zeros(4, 6, dtype=torch.bfloat16),
        torch.zeros(24),
    ]
    assert len({digest(tensor) for tensor in (one, *others)}) == 6
    assert digest(one) == digest(torch.zeros(6, 4).t()), "how it lies in memory does not matter"


def test_probes_ask_through_the_template_and_fit_the_context(exported: tuple[Path, Ledger, Renderer]) -> None:
    _, _, renderer = exported
    asked = probes(renderer, 40)
    assert len(asked) == 16 and max(map(len, asked)) == 40 and all(ids[0] == 0 for ids in asked[:12])
    assert len(probes(Renderer(renderer.tokenizer, None), 40)) == 12


def test_probe_logits_are_those_of_each_prompt_alone() -> None:
    decoder = make_decoder()
    prompts = [[1, 2, 3], [7], [9, 8, 7, 6, 5]]
    together = probe_logits(decoder, prompts)
    alone = torch.cat([probe_logits(decoder, [prompt]) for prompt in prompts])
    assert together.shape == (9, 61) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-4)


def test_compare_against_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, candidate = (torch.randn(150, 33, generator=generator) for _ in range(2))
    found = compare(reference, candidate)
    p, q = reference.double().softmax(-1), candidate.double().softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    assert found.mean_kl == pytest.approx(float(kl.mean())) and found.max_kl == pytest.approx(float(kl.max()))
    assert found.max_difference == pytest.approx(float((reference - candidate).abs().max()))
    assert found.greedy_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert compare(reference, reference) == Comparison(150, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_infinitely_far(value: float) -> None:
    reference = torch.zeros(3, 5)
    spoiled = reference.clone()
    spoiled[2, 1] = value
    assert compare(reference, spoiled).mean_kl == compare(spoiled, reference).mean_kl == float("inf")
