"""Checkpoints that transformers and bitsandbytes quantised are read without either, to the last bit, and written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import change_config, logits, oracle
from safetensors.torch import load_file, save_file

from whippet import lora
from whippet.errors import ModelError, UsageError
from whippet.kernels.nf4 import dequantize_nf4
from whippet.model.projection import Projection
from whippet.options import LoraOptions
from whippet.weights.bnb_write import quantised_tensors, quantization_config
from whippet.weights.hf import write_checkpoint
from whippet.weights.load import load_decoder, open_checkpoint, read_config

SKIPPED = ["lm_head", "model.layers.1.mlp", "model.layers.0.self_attn.k_proj"]
NF4 = ("double", "single", "skipping")
OTHERS = ("fp4", "fp4-double", "int8", "int8-skipping")
PARTS = {
    "qkv": ("self_attn", "q_proj", "k_proj", "v_proj"),
    "o": ("self_attn", "o_proj"),
    "gate_up": ("mlp", "gate_proj", "up_proj"),
    "down": ("mlp", "down_proj"),
}


def quantise(source: Path, target: Path, kind: str) -> Any:
    """Quantise a checkpoint with bitsandbytes and save it in its own layout."""
    import transformers

    options = transformers.BitsAndBytesConfig(
        load_in_4bit="int8" not in kind,
        load_in_8bit="int8" in kind,
        bnb_4bit_quant_type="fp4" if "fp4" in kind else "nf4",
        bnb_4bit_use_double_quant=kind in ("double", "skipping", "fp4-double"),
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=SKIPPED if "skipping" in kind else None,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=options, device_map="cpu"
    )
    model.save_pretrained(target)
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model large enough that its matrices have several nested blocks of absmax, not all of them whole."""
    folder = tmp_path_factory.mktemp("plain")
    oracle("llama-3", hidden_size=256, intermediate_size=320).to(torch.bfloat16).save_pretrained(folder)
    return folder


Quantised = dict[str, tuple[Path, Any]]
"""The checkpoint and the bitsandbytes model of each kind."""


@pytest.fixture(scope="module")
def quantised(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in (*NF4, *OTHERS)}
    return {kind: (folder, quantise(plain, folder, kind)) for kind, folder in folders.items()}


def theirs(model: Any, name: str) -> torch.Tensor:
    """A fused matrix of a bitsandbytes model, dequantised by bitsandbytes."""
    _, index, ours = name.split(".")
    home, *parts = PARTS[ours]
    modules = [model.get_submodule(f"model.layers.{index}.{home}.{part}") for part in parts]
    return torch.cat([numbers(module.weight) for module in modules])


def numbers(weight: Any) -> torch.Tensor:
    """The weight of a module of bitsandbytes, dequantised by it."""
    import bitsandbytes.functional as bnb

    if getattr(weight, "SCB", None) is not None:
        return bnb.int8_vectorwise_dequant(weight.CB if weight.CB is not None else weight.data, weight.SCB)
    return bnb.dequantize_4bit(weight.data, weight.quant_state) if hasattr(weight, "quant_state") else weight


def ours(projection: Projection) -> torch.Tensor:
    if projection.nf4 is None:
        return projection.dense
    return dequantize_nf4(projection.nf4, torch.bfloat16)


@pytest.mark.parametrize("kind", NF4)
def test_weights_equal_those_of_bitsandbytes(kind: str, quantised: Quantised) -> None:
    folder, model = quantised[kind]
    decoder = load_decoder(folder)
    dense = [name for name, projection in decoder.projections() if projection.nf4 is None]
    assert dense == (["layers.0.qkv", "layers.1.gate_up", "layers.1.down"] if kind == "skipping" else [])
    for name, projection in decoder.projections():
        assert torch.equal(ours(projection).to(torch.bfloat16), theirs(model, name)), name
    assert torch.equal(decoder.head_weight.to(torch.bfloat16), model.lm_head.weight)


def test_quantised_here_equals_quantised_there(quantised: Quantised, plain: Path) -> None:
    folder, _ = quantised["double"]
    here, there = load_decoder(plain, base="nf4"), load_decoder(folder)
    for (name, first), (_, second) in zip(here.projections(), there.projections(), strict=True):
        assert first.nf4 is not None
        assert second.nf4 is not None
        assert torch.equal(first.nf4.codes, second.nf4.codes), name
        assert torch.equal(ours(first), ours(second)), name


@pytest.mark.parametrize("kind", OTHERS)
def test_fp4_and_8_bit_are_read_as_the_numbers_they_stand_for(kind: str, quantised: Quantised) -> None:
    """Of the dtype that they had: bf16 for fp4, fp32 for 8 bit, which does not tell."""
    folder, model = quantised[kind]
    assert read_config(folder)[1] is False
    decoder = load_decoder(folder, base="fp32")
    for name, projection in decoder.projections():
        assert torch.equal(projection.dense, theirs(model, name).float()), name
        assert (projection.dense == 0).float().mean() < 0.2
    again = load_decoder(folder, base="nf4")
    assert all(projection.nf4 is not None for _, projection in again.projections())
    held = load_decoder(folder)
    for (name, projection), (_, dense) in zip(held.projections(), decoder.projections(), strict=True):
        assert torch.equal(projection.weight_fp32(), dense.dense), name
    left = [name for name, projection in held.projections() if projection.quantised is None]
    skipped = ["layers.0.qkv", "layers.1.gate_up", "layers.1.down"]
    assert left == {"int8": [], "int8-skipping": skipped}.get(kind, [name for name, _ in held.projections()])


@pytest.mark.parametrize("kind", ["double", "single", "skipping", "int8", "int8-skipping"])
def test_a_base_is_written_back_with_its_bytes(kind: str, quantised: Quantised, tmp_path: Path) -> None:
    """And read by bitsandbytes. A matrix that was skipped takes the parts that lie beside it along, as numbers."""
    import transformers

    folder, model = quantised[kind]
    decoder = load_decoder(folder)
    write_checkpoint(tmp_path, quantised_tensors(decoder, torch.bfloat16))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    if "skipping" in kind:
        beside = ("layers.0.self_attn.q_proj.", "layers.0.self_attn.v_proj.")
        before = {name: tensor for name, tensor in before.items() if not any(part in name for part in beside)}
        after = {name: tensor for name, tensor in after.items() if not any(part in name for part in beside)}
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(after[name], tensor), name
    config = json.loads((folder / "config.json").read_text())
    written = config["quantization_config"] | quantization_config(decoder, torch.bfloat16)
    assert written["bnb_4bit_use_double_quant"] is (kind in ("double", "skipping"))
    assert (written["load_in_8bit"], written["load_in_4bit"]) == ("int8" in kind, "int8" not in kind)
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": written}))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    for name, _ in decoder.projections():
        wanted = theirs(model, name)
        # What lies beside a skipped matrix is written in 16 bit, which numbers of 8 bit times a scale need not be.
        wanted = wanted.bfloat16() if (kind, name) == ("int8-skipping", "layers.0.qkv") else wanted
        assert torch.equal(theirs(again, name), wanted), name
    lora.attach(decoder, LoraOptions(r=2, targets=("o_proj",)), seed=0)
    with pytest.raises(UsageError, match=r"layers\.0\.o has an adapter"):
        list(quantised_tensors(decoder, torch.bfloat16))


@pytest.mark.parametrize("kind", NF4)
def test_logits_are_those_of_the_dequantised_weights(kind: str, quantised: Quantised) -> None:
    folder, _ = quantised[kind]
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(0))
    four_bit, dense = load_decoder(folder), load_decoder(folder, base="bf16", compute="fp32")
    assert (four_bit.compute_dtype, dense.layers[0].qkv.dense.dtype) == (torch.float32, torch.bfloat16)
    exact = logits(four_bit, ids)
    # The dense copy is rounded to 16 bit once, as bitsandbytes rounds it.
    assert (exact - logits(dense, ids)).abs().max() <= 0.05 * exact.abs().max()
    trained = load_decoder(folder, trainable=True)
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in trained.parameters())
    assert (logits(trained, ids) - logits(dense, ids)).abs().max() <= 1e-5


def test_neither_package_is_imported(quantised: Quantised) -> None:
    folder, _ = quantised["double"]
    code = (
        "import sys; from whippet.weights.load import load_decoder; load_decoder(sys.argv[1]);"
        "sys.exit(any(name.split('.')[0] in ('bitsandbytes', 'transformers', 'peft') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=120).returncode == 0


NAME = "model.layers.0.mlp.up_proj.weight"
STATE = NAME + ".quant_state.bitsandbytes__nf4"


def state_with(tensors: dict[str, torch.Tensor], **changes: Any) -> None:
    state = json.loads(bytes(tensors[STATE].tolist())) | changes
    tensors[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({STATE.replace("nf4", "fp4"): t.pop(STATE)}), "quant_type nf4, wanted fp4"),
        (lambda t: t.update({STATE.replace("nf4", "fp4"): t[STATE].clone()}), "as nf4 and as fp4"),
        (lambda t: t.update({NAME.replace("weight", "SCB"): torch.ones(2)}), "as nf4 and as int8"),
        (lambda t: t.pop(STATE), "is U8"),
        (lambda t: t.pop(NAME + ".absmax"), "absmax.*is missing"),
        (lambda t: t.update({NAME + ".absmax": t[NAME + ".absmax"][1:].clone()}), "numbers, wanted"),
        (lambda t: t.update({NAME: t[NAME][1:].clone()}), "numbers, wanted"),
        (lambda t: t.update({NAME + ".quant_map": t[NAME + ".quant_map"] * 0.5}), "16 levels"),
        (lambda t: t.update({STATE: torch.zeros(9, dtype=torch.uint8)}), "not valid JSON"),
        (lambda t: t.update({STATE: torch.zeros(5000, dtype=torch.uint8)}), "a few bytes"),
        (lambda t: state_with(t, shape=[1, 2]), "shape"),
        (lambda t: state_with(t, blocksize=128), "blocksize"),
        (lambda t: state_with(t, dtype="float64"), "dtype"),
        (lambda t: state_with(t, nested_blocksize=128), "nested_blocksize"),
        (lambda t: state_with(t, nested_offset="x"), "nested_offset"),
        (lambda t: state_with(t, nested_offset=float("nan")), "nested_offset"),
        (lambda t: state_with(t, nested_offset=10**400), "nested_offset"),
        (
            lambda t: t.update({"model.norm.weight" + STATE.removeprefix(NAME): t[STATE].clone()}),
            "quant_state has shape",
        ),
    ],
)
def test_damage_is_named(change: Any, words: str, quantised: Quantised, tmp_path: Path) -> None:
    """Before any matrix is read."""
    folder, _ = quantised["double"]
    changed(folder, tmp_path, change)
    for read in (load_decoder, lambda path: open_checkpoint(path, read_config(path)[0])):
        with pytest.raises(ModelError, match=words):
            read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "part"), [("single", ".absmax"), ("double", ".nested_absmax"), ("double", ".nested_quant_map")]
)
@pytest.mark.parametrize("base", ["nf4", "bf16"])
def test_what_is_not_finite_is_named(kind: str, part: str, base: Any, quantised: Quantised, tmp_path: Path) -> None:
    folder, _ = quantised[kind]
    changed(folder, tmp_path, lambda tensors: tensors[NAME + part].view(-1)[-1:].fill_(float("nan")))
    with pytest.raises(ModelError, match=f"model.safetensors: {NAME + part} holds NaN or infinity"):
        load_decoder(tmp_path, base=base)


SCALES = NAME.replace("weight", "SCB")
FORM = NAME.replace("weight", "weight_format")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(SCALES), "SCB' of a quantised matrix is missing"),
        (lambda t: t.update({SCALES: t[SCALES][1:].clone()}), "SCB is F32"),
        (lambda t: t.update({FORM: torch.tensor(2, dtype=torch.uint8)}), "weight_format is none"),
        (lambda t: t.update({NAME: t[NAME].float()}), "has an SCB and is F32"),
        (lambda t: (t.pop(SCALES), t.pop(FORM)), "is I8; whippet reads F32"),
        (lambda t: t[SCALES][-1:].fill_(float("inf")), "SCB holds NaN or infinity"),
    ],
)
def test_damage_of_8_bit_is_named(change: Any, words: str, quantised: Quantised, tmp_path: Path) -> None:
    changed(quantised["int8"][0], tmp_path, change)
    with pytest.raises(ModelError, match=words):
        load_decoder(tmp_path)


def changed(folder: Path, target: Path, change: Any) -> None:
    """A copy of the checkpoint with other tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("quantisation", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": "6"}, "llm_int8_threshold"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "'int4'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": []}, r"'\[\]'"),
        ("nf4", "must be a table"),
    ],
)
def test_other_quantisations_are_refused(quantisation: Any, words: str, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text((plain / "config.json").read_text())
    change_config(tmp_path, quantization_config=quantisation)
    with pytest.raises(ModelError, match=words):
        load_decoder(tmp_path)
