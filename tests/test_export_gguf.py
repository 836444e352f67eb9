"""GGUF files: read back they are the model, transformers finds the same weights in them, llama.cpp the same answers."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_infer import CHAT, make_tokenizer, write_checkpoint
from helpers_models import oracle
from helpers_runs import tiny_run, write_run
from safetensors.torch import load_file, save_file

import whippet
import whippet.export as module
from whippet.errors import GateError, MissingExtra, ModelError, UsageError
from whippet.export import export
from whippet.weights import gguf as writing
from whippet.weights.gguf import load_gguf
from whippet.weights.gguf_read import GGUFFile

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
YARN = {"rope_type": "yarn", "rope_theta": 700.0, "factor": 4.0, "original_max_position_embeddings": 40}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3": ("llama-3", {}),
    "tied": ("tied", {}),
    "biased": ("biased", {}),
    "wide-heads": ("wide-heads", {"num_key_value_heads": 1}),
    "mistral": ("mistral", {}),
    "granite": ("granite", {}),
    "qwen2": ("qwen2", {"rope_parameters": YARN, "max_position_embeddings": 160}),
    "qwen3": ("qwen3", {"attention_bias": False, "use_sliding_window": False, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 24, "attention_bias": False}),
    "gemma3": (
        "gemma3",
        {
            "query_pre_attn_scalar": 24, "attention_bias": False, "final_logit_softcapping": None,
            "num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "rope_parameters": ROPE,
        },
    ),
    "phi3": ("phi3", {}),
}  # fmt: skip
"""Each family, with what llama.cpp computes of it switched on."""
IDS = [0, *random.Random(3).choices(range(5, 300), k=9)]


def checkpoint_of(case: str, folder: Path, **changes: Any) -> Path:
    """A random checkpoint with a tokenizer and chat template."""
    name, own = CASES.get(case, (case, {}))
    oracle(name, **({"vocab_size": 300} | own | changes)).save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a run that trained over its NF4 weights."""
    return tiny_run(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("case", CASES)
def test_every_family_comes_back_and_is_what_transformers_reads(case: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    base = checkpoint_of(case, tmp_path / "base")
    run = write_run(tmp_path / "run", base, held="fp32")
    report = export(run, "gguf:f32", tmp_path / "out", device="cpu")
    assert report.passed and report.comparison.max_difference < 1e-4 and report.merged_onto == "trained"
    live = whippet.load(run, device="cpu", compute="fp32").logits(IDS)
    with GGUFFile(tmp_path / "out" / "model-f32.gguf") as file:
        tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
        assert ("output.weight" in file.tensors) is not tied
        assert all(info.kind.name == "f32" for info in file.tensors.values())
    merged = export(run, "hf", tmp_path / "hf", dtype="fp32", device="cpu").out
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(merged)).eval()
    if case == "mistral":
        model.config.model_type = "llama"  # as the file calls it
    read = load_gguf_checkpoint(str(file.path), return_tensors=True, model_to_load=model)["tensors"]
    # transformers 5.24 passes over biases that llama.cpp reads for llama.
    missing = set(model.state_dict()) - set(read) - ({"lm_head.weight"} if tied else set())
    assert all(name.endswith("bias") for name in missing) and (not missing or case in ("biased", "granite"))
    wanted = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    for name in missing:
        read[name] = wanted.state_dict()[name]
    model.load_state_dict(read, strict=False)
    with torch.no_grad():
        assert (model(torch.tensor([IDS])).logits[0] - live).abs().max() < 1e-4


@pytest.mark.parametrize("mix", ["f16", "bf16", "q8_0", "q4_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k"])
def test_every_type_is_written_and_judged_by_its_bound(mix: str, tmp_path: Path) -> None:
    """A model that is as flat as trained ones are, with rows of whole blocks."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 300}
    base = checkpoint_of("llama", tmp_path / "base", **shape)
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] * 0.3}, base / "model.safetensors")
    report = export(base, f"gguf:{mix}", tmp_path / "out", device="cpu")
    told = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert report.passed and report.dtype == told["dtype"] == mix and told["format"] == "gguf" and report.notes == ()
    assert 0 < report.comparison.mean_kl <= report.bound_mean_kl == told["bound_mean_kl"]
    reader = gguf.GGUFReader(tmp_path / "out" / f"model-{mix}.gguf")
    kinds = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    usual, output, values = {
        "q4_k_s": ("q4_k", "q6_k", ["q5_k"] * 4),
        "q4_k_m": ("q4_k", "q6_k", ["q4_k", "q4_k", "q6_k", "q6_k"]),
        "q5_k_m": ("q5_k", "q6_k", ["q5_k", "q5_k", "q6_k", "q6_k"]),
        "q4_0": ("q4_0", "q6_k", ["q4_0"] * 4),
    }.get(mix, (mix, mix, [mix] * 4))
    assert kinds["output.weight"] == output and [kinds[f"blk.{n}.attn_v.weight"] for n in range(4)] == values
    assert {kinds[f"blk.{n}.{name}.weight"] for n in range(4) for name in ("attn_q", "ffn_up")} == {usual}
    assert kinds["token_embd.weight"] == usual and kinds["blk.0.attn_norm.weight"] == "f32"
    assert int(reader.get_field("general.file_type").contents()) == {
        "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_s": 14, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "bf16": 32
    }[mix]  # fmt: skip
    assert (tmp_path / "out" / "README.md").is_file()


def test_rows_of_no_whole_blocks_are_said(made: tuple[Path, Path], tmp_path: Path) -> None:
    report = export(made[0], "gguf:q6_k", tmp_path / "out", device="cpu")
    assert report.notes == ("16 matrices have rows of no whole blocks of 256 numbers and are q8_0 instead",)


def test_a_4_bit_run_is_merged_onto_what_it_was_trained_over(made: tuple[Path, Path], tmp_path: Path) -> None:
    report = export(made[1], "gguf:f32", device="cpu")
    assert report.out == made[1] / "gguf-f32" and report.merged_onto == "trained" and report.trained_base == "nf4"
    with GGUFFile(report.out / "model-f32.gguf") as file:
        back = load_gguf(file)
    shutil.rmtree(report.out)
    live = whippet.load(made[1], device="cpu", compute="fp32").logits(IDS)
    assert (module.probe_logits(back, [IDS]) - live).abs().max() < 1e-3
    other = export(made[1], "gguf:f32", tmp_path / "16", merge_onto="16bit", device="cpu")
    assert other.against_trained is not None and other.against_trained.mean_kl > 0.01 > other.comparison.mean_kl


@pytest.mark.parametrize("which", ["embedding", "head"])
def test_tied_matrices_that_an_adapter_parts_are_both_there(which: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base = checkpoint_of("tied", tmp_path / "base")
    name = {"embedding": "embed_tokens", "head": "lm_head"}[which]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=[name], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    report = export(tmp_path / "adapter", "gguf:f32", tmp_path / "out", device="cpu")
    with GGUFFile(tmp_path / "out" / "model-f32.gguf") as file:
        back = load_gguf(file)
        assert "output.weight" in file.tensors and not back.config.tie_embeddings
    assert report.comparison.max_difference < 1e-4
    live = whippet.load(base, adapter=tmp_path / "adapter", base="fp32", device="cpu", compute="fp32").logits(IDS)
    assert (module.probe_logits(back, [IDS]) - live).abs().max() < 1e-4


def test_the_tokenizer_goes_along(made: tuple[Path, Path], tmp_path: Path) -> None:
    import transformers

    out = export(made[0], "gguf:f16", tmp_path / "out", device="cpu").out
    with GGUFFile(out / "model-f16.gguf") as file:
        told = file.metadata
    assert told["general.architecture"] == "llama" and told["llama.context_length"] == 128
    assert told["tokenizer.ggml.model"] == "gpt2" and told["tokenizer.ggml.pre"] == "gpt-2"
    assert told["tokenizer.chat_template"] == CHAT and len(told["tokenizer.ggml.tokens"]) == 300
    ends = ("bos", "eos", "eot", "padding")
    assert [told[f"tokenizer.ggml.{name}_token_id"] for name in ends] == [0, 1, 3, 4]
    # A text would get BOS here, but no chat has one: what runs the file must not add it.
    assert told["tokenizer.ggml.add_bos_token"] is False
    theirs = transformers.AutoTokenizer.from_pretrained(out, gguf_file="model-f16.gguf")
    text = "two lazy dogs<|im_end|> ünder thé moon"
    assert theirs.encode(text, add_special_tokens=False) == whippet.load(made[0], device="cpu").tokenizer.encode(text)


def test_a_template_that_writes_bos_has_it_once(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", template="{{ bos_token }}" + CHAT)
    export(base, "gguf:f32", tmp_path / "out", device="cpu")
    with GGUFFile(tmp_path / "out" / "model-f32.gguf") as file:
        assert file.metadata["tokenizer.ggml.add_bos_token"] is True


# --- what is refused, and what a check finds -------------------------------------------------------------------------


def test_other_types_are_refused_with_the_known_ones(made: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--to gguf:q3_k: not known; known: hf, adapter, gguf:f32, gguf:f16, gguf:bf"):
        export(made[0], "gguf:q3_k", tmp_path / "out")
    with pytest.raises(UsageError, match="--dtype fp16: the type of a GGUF file is chosen by --to gguf:TYPE"):
        export(made[0], "gguf:f16", tmp_path / "out", dtype="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("qwen2-tied", "rope scaling llama3 of a qwen2 is not what llama.cpp computes"),
        ("qwen2-yarn", "yarn with truncate false"),
        ("gemma2-odd", "query_pre_attn_scalar is 20; llama.cpp takes 24"),
        ("gemma3", None),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(case: str, said: str | None, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    if case == "gemma2-odd":
        case, changes = "gemma2", {"query_pre_attn_scalar": 20}
    if said is None:
        said, changes = "all but every 6. layer", {"layer_types": ["full_attention"] + ["sliding_attention"] * 5}
    base = checkpoint_of(case, tmp_path / "base", **changes)
    with pytest.raises(ModelError, match=said):
        export(base, "gguf:f32", tmp_path / "out", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_window_that_llama_cpp_does_not_compute_ends_the_context(tmp_path: Path) -> None:
    base = checkpoint_of("mistral", tmp_path / "base")
    report = export(base, "gguf:f32", tmp_path / "out", device="cpu")
    assert report.notes == ("llama.cpp computes no windows for mistral: the context ends at 24 tokens",)
    with GGUFFile(tmp_path / "out" / "model-f32.gguf") as file:
        assert file.metadata["llama.context_length"] == 24


@pytest.mark.parametrize("fault", ["bytes", "order", "norm"])
def test_a_writer_that_errs_is_found_out(
    fault: str, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writing.arranged
    if fault == "bytes":
        write = writing.write_gguf

        def damage(path: Path, *rest: Any) -> None:
            write(path, *rest)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)

        monkeypatch.setattr(writing, "write_gguf", damage)
    elif fault == "order":
        monkeypatch.setattr(writing, "arranged", lambda name, tensor, config: tensor)
    else:
        monkeypatch.setattr(writing, "arranged", lambda name, *rest: real(name, *rest) * (0.9 if "norm" in name else 1))
    with pytest.raises(GateError, match="is not what was written" if fault == "bytes" else "answer differently"):
        export(made[0], "gguf:f32", tmp_path / "out", device="cpu")


def test_without_the_package_its_extra_is_named(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"pip install 'whippet\[gguf\]'"):
        export(made[0], "gguf:f32", tmp_path / "out", device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_same_answers(case: str, tmp_path: Path) -> None:
    """Where its bindings are installed (``pip install xllamacpp``): scores of the next token within the rounding of an
    fp16 cache."""
    bindings = pytest.importorskip("xllamacpp", reason="llama.cpp's bindings (xllamacpp) are not installed")
    base = checkpoint_of(case, tmp_path / "base")
    out = export(base, "gguf:f32", tmp_path / "out", device="cpu").out
    ids = IDS if case != "phi3" else [0, *random.Random(4).choices(range(5, 300), k=44)]  # it takes the long factors
    params = bindings.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(out / "model-f32.gguf"), 64, 1
    params.warmup, params.n_gpu_layers, params.verbosity = False, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = bindings.Server(params)
    asked = {"prompt": ids, "n_predict": 1, "n_probs": 300, "temperature": 1.0, "cache_prompt": False}
    # The answer holds no scores where its token is part of a character.
    answers = (server.handle_completions(asked | {"seed": seed})["choices"][0]["logprobs"] for seed in range(20))
    top = next(answer for answer in answers if answer is not None)["content"][0]["top_logprobs"]
    wanted = whippet.load(base, device="cpu", compute="fp32").logits(ids)[-1].log_softmax(-1)
    assert len(top) == 300 and max(abs(one["logprob"] - float(wanted[one["id"]])) for one in top) < 0.02
