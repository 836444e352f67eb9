"""Loading: what is refused, by header alone where that tells, what may be a link, and how much memory it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import change_config
from helpers_paths import hub_cache
from safetensors.torch import load_file, save_file

from whippet import lora
from whippet.chat.render import make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import ModelError, UsageError
from whippet.kernels import fp8
from whippet.kernels.fp8 import dequantize_fp8, quantize_fp8
from whippet.options import LoraOptions
from whippet.weights.adapter import CONFIG, WEIGHTS, load_adapter, save_adapter
from whippet.weights.files import read_json
from whippet.weights.hf import INDEX, SINGLE, CheckpointReader
from whippet.weights.load import load_decoder, open_checkpoint, read_config, resolve_model
from whippet.weights.names import table

UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Set tensors of the checkpoint; None removes one."""
    held = load_file(folder / SINGLE) | tensors
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, folder / SINGLE)


def opened(folder: Path) -> CheckpointReader:
    return open_checkpoint(folder, read_config(folder)[0])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({UP: None, NORM: None}, f"model: 2 tensors are missing, the first is '{NORM}'"),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(2), "extra": torch.ones(1)},
         f"model/{SINGLE}: 2 unexpected tensors, the first is 'extra'"),
        ({UP: torch.ones(128, 63)}, rf"model/{SINGLE}: {UP} has shape \[128, 63\], and the config wants \[128, 64\]"),
        ({UP: torch.ones(128, 64, dtype=torch.int32)}, f"model/{SINGLE}: {UP} is I32; whippet reads F32, F16, BF16"),
    ],
    ids=["missing", "unexpected", "misshapen", "integers"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder: Path, tensors: dict[str, Any], said: str) -> None:
    change(folder, **tensors)
    for read in (opened, load_decoder):
        with pytest.raises(ModelError, match=said) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


def test_a_tied_checkpoint_may_hold_its_output_matrix_again(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    embedding = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    with pytest.raises(ModelError, match=r"lm_head.weight differs from the embedding"):
        opened(folder)
    change(folder, **{"lm_head.weight": embedding.clone()})
    opened(folder).close()
    change(folder, **{"lm_head.weight": torch.zeros_like(embedding, dtype=torch.float8_e4m3fn)})
    with pytest.raises(ModelError, match=r"lm_head.weight differs from the embedding"):
        opened(folder)


@pytest.mark.parametrize("base", ["fp32", "bf16", "fp8", "int8", "nf4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_with_their_file(folder: Path, base: Any, value: float) -> None:
    weight = load_file(folder / SINGLE)[UP]
    weight[-1, -1] = value
    change(folder, **{UP: weight})
    with pytest.raises(ModelError, match=f"model/{SINGLE}: {UP}.* finite weights"):
        load_decoder(folder, base=base, device="cpu")
    opened(folder).close()
    change(folder, **{UP: torch.ones_like(weight), NORM: torch.full((64,), value)})
    with pytest.raises(ModelError, match=f"model/{SINGLE}: {NORM} holds NaN, infinity or"):
        load_decoder(folder, base=base, device="cpu")


def test_a_weight_too_large_for_what_holds_it_is_named(folder: Path) -> None:
    change(folder, **{NORM: torch.full((64,), 1e5)})
    load_decoder(folder, base="nf4", compute="bf16", device="cpu")
    with pytest.raises(ModelError, match=f"{NORM} .*too large for torch.float16"):
        load_decoder(folder, base="nf4", compute="fp16", device="cpu")


def test_fp8_holds_the_projections_in_8_bit_and_nothing_else(folder: Path) -> None:
    """From fp32 as it is; from 4 bit what those weights dequantise to."""
    stored = load_file(folder / SINGLE)
    decoder = load_decoder(folder, base="fp8", compute="bf16", device="cpu")
    assert {(p.dtype, p.requires_grad) for p in decoder.parameters()} == {(torch.bfloat16, False)}
    gate_up = decoder.layers[1].gate_up
    assert gate_up.weight is None and gate_up.fp8.codes.dtype == torch.float8_e4m3fn
    gate, up = gate_up.weight_fp32().chunk(2)
    assert torch.equal(up, dequantize_fp8(quantize_fp8(stored[UP])))
    assert not torch.equal(up, stored[UP]) and (up - stored[UP]).norm() < 0.03 * stored[UP].norm()
    assert not torch.equal(gate, up)


def test_compute_fp8_keeps_nf4_and_needs_it(folder: Path) -> None:
    decoder = load_decoder(folder, base="nf4", compute="fp8", device="cpu")
    plain = load_decoder(folder, base="nf4", compute="bf16", device="cpu")
    assert decoder.compute_dtype == torch.bfloat16
    for (name, one), (_, other) in zip(decoder.projections(), plain.projections(), strict=True):
        assert fp8.wanted(one.nf4) and not fp8.wanted(other.nf4), name
        assert one.nf4.nbytes == other.nf4.nbytes + 8 * one.out_size  # two numbers a row
        assert torch.equal(one.weight_fp32(), other.weight_fp32())
    for base in ("bf16", "fp32"):
        with pytest.raises(UsageError, match=f'model.compute = "fp8" needs model.base = "nf4" or "fp8", met "{base}"'):
            load_decoder(folder, base=base, compute="fp8", device="cpu")


def test_an_adapter_that_is_not_finite_is_named(folder: Path, tmp_path: Path) -> None:
    decoder, options = load_decoder(folder, device="cpu"), LoraOptions(r=2)
    lora.attach(decoder, options, seed=0)
    save_adapter(decoder, options, tmp_path / "adapter", "base")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    name = sorted(tensors)[-1]
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(ModelError, match=f"adapter/{WEIGHTS}: {name} holds NaN"):
        load_adapter(load_decoder(folder, device="cpu"), tmp_path / "adapter")


def test_70_billion_weights_are_checked_by_their_headers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of 141 GB that take no room: all but their headers is a hole."""
    change_config(folder, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
                  num_key_value_heads=8, vocab_size=128256)  # fmt: skip
    (folder / SINGLE).unlink()
    config, _ = read_config(folder)
    parts = [part for entry in table(config) for part in entry.parts]
    weight_map: dict[str, str] = {}
    total = 0
    for number, start in enumerate(range(0, len(parts), 25)):
        header, place = {}, 0
        for part in parts[start : start + 25]:
            nbytes = 2 * torch.Size(part.shape).numel()
            header[part.name] = {"dtype": "BF16", "shape": part.shape, "data_offsets": [place, place + nbytes]}
            place += nbytes
        raw = json.dumps(header).encode()
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + place)
        weight_map |= dict.fromkeys(header, f"model-{number}.safetensors")
        total += place
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    monkeypatch.setattr(CheckpointReader, "tensor", None)
    started = time.perf_counter()
    with open_checkpoint(folder, config) as reader:
        assert reader.total_bytes == total > 141e9
    assert time.perf_counter() - started < 5
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["config.json", SINGLE, INDEX, "model-1.safetensors"])
def test_links_out_of_a_checkpoint_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    if name in (INDEX, "model-1.safetensors"):
        (folder / SINGLE).rename(folder / "model-1.safetensors")
        tensors = dict.fromkeys(load_file(folder / "model-1.safetensors"), "model-1.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": tensors}))
    load_decoder(folder, device="cpu")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    for read in (opened, load_decoder):
        with pytest.raises(ModelError, match=f"model/{name} leads to {tmp_path}/{name}, outside") as caught:
            read(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_links_out_of_an_adapter_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    decoder, options = load_decoder(folder, device="cpu"), LoraOptions(r=2)
    lora.attach(decoder, options, seed=0)
    save_adapter(decoder, options, tmp_path / "adapter", "base")
    (tmp_path / "adapter" / name).rename(tmp_path / name)
    (tmp_path / "adapter" / name).symlink_to(tmp_path / name)
    with pytest.raises(ModelError, match=f"adapter/{name} leads to {tmp_path}/{name}, outside"):
        load_adapter(load_decoder(folder, device="cpu"), tmp_path / "adapter")


def test_a_link_to_itself_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("x.json")
    with pytest.raises(ModelError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("shared", [False, True])
def test_the_hubs_cache_is_read(folder: Path, tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    decoder, options = load_decoder(folder, device="cpu"), LoraOptions(r=2)
    lora.attach(decoder, options, seed=0)
    save_adapter(decoder, options, tmp_path / "adapter", "org/name")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "brief.jinja").write_text("{{ messages[0].content }}")
    hub_cache(tmp_path / "cache", "models--org--name", folder, shared=shared)
    adapter = hub_cache(tmp_path / "cache", "models--org--adapter", tmp_path / "adapter", shared=shared)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "adapter")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = resolve_model("org/name")
    assert found.is_relative_to(tmp_path / "cache") and (found / SINGLE).is_symlink()
    again = load_decoder(found, device="cpu")
    assert load_adapter(again, adapter) == options
    assert torch.equal(again.embedding, decoder.embedding)
    tokenizer = Tokenizer.load(found)
    assert tokenizer.vocab_size == 300
    template = make_renderer(tokenizer, "brief").template
    assert template is not None and template.source == "{{ messages[0].content }}"


def test_without_weights_only_text_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fnmatch

    import huggingface_hub

    asked: list[list[str]] = []

    ignored: list[str] = []

    def snapshot_download(name: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert (name, revision) == ("org/name", "v2")
        asked.append(allow_patterns)
        ignored[:] = ignore_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for weights in (True, False):
        assert resolve_model("org/name", "v2", weights=weights) == folder

    def fetched(name: str, patterns: list[str]) -> bool:
        matching = [[one for one in some if fnmatch.fnmatch(name, one)] for some in (patterns, ignored)]
        return bool(matching[0]) and not matching[1]

    for name in (SINGLE, "model-00001-of-00002.safetensors"):
        assert [fetched(name, patterns) for patterns in asked] == [True, False]
    texts = ("config.json", INDEX, "tokenizer.json", "chat_template.jinja", "tokenizer.model")
    for name in (*texts, "additional_chat_templates/tool_use.jinja"):
        assert [fetched(name, patterns) for patterns in asked] == [True, True]
    place, within = (
        "additional_chat_templates",
        ("original/params.json", "onnx/a/b.json", "a/x.jinja", "additional/x.json"),
    )
    odd = [
        f"{place}{tail}" for tail in ("/a/x.jinja", "2/x.jinja", "/x.json", "/x.safetensors", "/x.bin", "s/a/x.jinja")
    ]
    for name in (*within, *odd, f"a/{place}/x.jinja", "consolidated.safetensors", "pytorch_model.bin", "modeling.py",
                 "weights.h5", "x.gguf"):  # fmt: skip
        assert [fetched(name, patterns) for patterns in asked] == [False, False]


PEAK = """
import sys
from whippet.weights.load import load_decoder

def bytes_of(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return 1024 * int(line.split()[1])

small, large = sys.argv[1:]
load_decoder(small, base="nf4", compute="fp32", device="cpu")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
before = bytes_of("VmHWM")
decoder = load_decoder(large, base="nf4", compute="fp32", device="cpu")
print(bytes_of("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the host memory from /proc")
def test_loading_holds_one_shard_at_a_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Eight shards of 37 MB become 37 MB of nf4: at no time is more than one of them in memory beside those."""
    large = tmp_path / "large"
    shutil.copytree(tiny_checkpoint, large, ignore=shutil.ignore_patterns("*.safetensors"))
    change_config(large, hidden_size=512, intermediate_size=768, num_hidden_layers=32, num_attention_heads=8,
                  num_key_value_heads=8, vocab_size=300)  # fmt: skip
    config, _ = read_config(large)
    values = torch.randn(2**19, generator=torch.Generator().manual_seed(0)) * 0.02
    weight_map: dict[str, str] = {}
    sizes = []
    for number in range(8):
        homes = [f".layers.{layer}." for layer in range(4 * number, 4 * number + 4)]
        shard = {
            part.name: values[: torch.Size(part.shape).numel()].view(part.shape).clone()
            for entry in table(config)
            for part in entry.parts
            if any(home in part.name for home in homes) or (number == 0 and ".layers." not in part.name)
        }
        path = large / f"model-{number}.safetensors"
        save_file(shard, path)
        sizes.append(path.stat().st_size)
        weight_map |= dict.fromkeys(shard, path.name)
    (large / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    command = [sys.executable, "-c", PEAK, str(tiny_checkpoint), str(large)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=one_thread)
    assert done.returncode == 0, done.stderr
    peak, held = int(done.stdout), sum(sizes) / 4 * 4.13 / 8
    assert peak <= max(sizes) + held + 30e6 < sum(sizes) / 1.7
