"""Gradients of the factors equal those of peft in fp32, for every option and every choice of projections."""

from __future__ import annotations

from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import logits, oracle, stream

from whippet import lora
from whippet.errors import UsageError
from whippet.options import TARGETS
from whippet.weights.adapter import load_adapter, save_adapter
from whippet.weights.load import load_decoder
from whippet.weights.names import peft_module

LENGTHS = (45, 9)
"""On both sides of windows and of LongRoPE's border."""
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SUBSETS = [(target,) for target in TARGETS] + [
    tuple(chain(*pair)) for pair in combinations((("q_proj", "v_proj"), ("o_proj",), ("gate_proj", "down_proj")), 2)
]
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("llama", {"target_modules": list(subset)}) for subset in SUBSETS),
    *(("llama", {"r": r, "lora_alpha": alpha}) for r, alpha in ((1, 1), (8, 32), (16, 5))),
    ("llama", {"r": 8, "lora_alpha": 16, "use_rslora": True}),
    ("qwen2", {"r": 4}),
    ("biased", {"r": 4}),
    ("tied", {"r": 4}),
    *((family, {"r": 4}) for family in ("mistral", "qwen3", "gemma2", "gemma3")),
    ("phi3", {"r": 4, "target_modules": FUSED}),
    ("phi3", {"r": 4, "target_modules": ["qkv_proj"]}),
]


@pytest.mark.parametrize(("case", "options"), CASES, ids=lambda value: str(value))
@pytest.mark.parametrize("base", ["fp32"])
def test_gradients_equal_those_of_peft(case: str, options: dict[str, Any], base: Any, tmp_path: Path) -> None:
    import peft

    model = oracle(case)
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**({"target_modules": list(TARGETS)} | options)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    decoder = load_decoder(tmp_path / "base", base=base)
    load_adapter(decoder, tmp_path / "adapter")
    ids = torch.randint(0, 97, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(sum(LENGTHS), 97, generator=torch.Generator().manual_seed(1))

    scores = decoder.logits(decoder(ids, *stream(*LENGTHS)))
    (scores * weights).sum().backward()
    theirs = torch.cat([adapted(document[None]).logits[0] for document in ids.split(list(LENGTHS))])
    (theirs * weights).sum().backward()

    assert (scores - theirs).abs().max() <= 5e-6 * max(1.0, float(theirs.detach().abs().max()))
    wanted = {
        name.replace("base_model.model.model.", "").replace(".default.weight", ""): parameter.grad
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }
    met = {}
    for name, parameter in lora.adapter_parameters(decoder).items():
        index, part, factor = name.removeprefix("layers.").split(".")
        met[f"{peft_module(int(index), part).removeprefix('model.')}.lora_{factor.upper()}"] = parameter.grad
    assert set(met) == set(wanted)
    for name, gradient in met.items():
        assert wanted[name].abs().max() > 1e-3
        assert (gradient - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max(), name


def test_the_default_names_mean_fused_projections_too(tmp_path: Path) -> None:
    """And what is written, PEFT attaches to the same modules."""
    import peft

    model = oracle("phi3")
    model.save_pretrained(tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    lora.attach(decoder, lora.LoraOptions(r=4), seed=0)
    parts = [part for _, projection in decoder.projections() for part, _ in projection.adapter_items()]
    assert parts == FUSED * 2
    for parameter in lora.adapter_parameters(decoder).values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    save_adapter(decoder, lora.LoraOptions(r=4), tmp_path / "adapter", "base")
    ids = torch.arange(60)
    wanted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")(ids[None]).logits[0]
    assert (logits(decoder, ids) - wanted).abs().max() <= 5e-6 * wanted.abs().max()


def test_a_part_of_a_fused_projection_is_refused(tmp_path: Path) -> None:
    for case, targets, words in (
        ("phi3", ("q_proj", "o_proj"), "no q_proj; it has qkv_proj, o_proj, gate_up_proj, down_proj"),
        ("llama", ("qkv_proj",), "no qkv_proj; it has q_proj"),
    ):
        oracle(case).save_pretrained(tmp_path / case)
        with pytest.raises(UsageError, match=words):
            lora.attach(load_decoder(tmp_path / case), lora.LoraOptions(targets=targets), seed=0)


def test_nothing_but_factors_is_trained(tmp_path: Path) -> None:
    oracle("biased").save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, base="nf4")
    lora.attach(decoder, lora.LoraOptions(r=4), seed=0)
    trained = {id(parameter) for parameter in decoder.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in lora.adapter_parameters(decoder).values()}
