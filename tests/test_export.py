"""Exports: what is written answers as the live model does, in transformers and peft too, or nothing is there."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_infer import CHAT, make_tokenizer, write_checkpoint
from helpers_models import FAMILIES, oracle
from helpers_runs import records, tiny_run, write_run
from safetensors import safe_open
from torch import Tensor

import whippet
import whippet.export as module
from whippet.errors import GateError, UsageError, WhippetError
from whippet.export import export
from whippet.options import ModelOptions, Recipe, TrainOptions
from whippet.recipe import write_recipe
from whippet.report.plot import loss_png

IDS = [0, 17, 44, 90, 123, 201, 250, 299, 5, 64]
CASES = ("llama", "llama-3", "tied", "biased", "wide-heads", "qwen2", "qwen2-tied")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a run that trained over its NF4 weights."""
    return tiny_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: tuple[Path, Path]) -> Path:
    return made[1]


def ours(path: Path, base: str = "auto") -> Tensor:
    return whippet.load(path, base=base, device="cpu", compute="fp32").logits(IDS)


def theirs(path: Path, adapter: Path | None = None) -> Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0]


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def checkpoint_of(case: str, folder: Path) -> Path:
    """A random checkpoint of a family, with a tokenizer and chat template."""
    oracle(case, vocab_size=300).save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    return folder


@pytest.mark.parametrize("case", [*CASES, *FAMILIES])
def test_merged_is_adapted_in_every_family(case: str, tmp_path: Path) -> None:
    base = checkpoint_of(case, tmp_path / "base")
    run = write_run(tmp_path / "run", base, held="fp32", rslora=case == "qwen2")
    report = export(run, "hf", tmp_path / "out", dtype="fp32", device="cpu")
    assert report.passed and report.comparison.max_difference < 1e-3 and report.bases_distance is None
    assert (ours(run) - theirs(tmp_path / "out")).abs().max() < 1e-4
    assert (theirs(base, run / "adapter") - theirs(tmp_path / "out")).abs().max() < 1e-4
    assert (theirs(base) - theirs(tmp_path / "out")).abs().max() > 1e-2, "the adapter changes something"
    tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


def test_a_4_bit_run_is_merged_onto_the_weights_that_it_was_trained_over(run: Path, tmp_path: Path) -> None:
    report = export(run, "hf", tmp_path / "out", dtype="fp32", device="cpu")
    assert report.merged_onto == "trained" and report.trained_base == "nf4"
    assert 0.05 < (report.bases_distance or 0) < 0.15
    assert (ours(run) - theirs(tmp_path / "out")).abs().max() < 1e-3


def test_an_fp8_run_is_merged_onto_the_weights_that_it_was_trained_over(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", made[0], held="fp8")
    report = export(run, "hf", tmp_path / "out", dtype="fp32", device="cpu")
    assert report.merged_onto == "trained" and report.trained_base == "fp8" and report.passed
    assert 0.01 < (report.bases_distance or 0) < 0.04
    assert (ours(run) - theirs(tmp_path / "out")).abs().max() < 1e-3


def test_onto_16_bit_is_the_unquantised_base_and_says_how_far_that_is(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, run = made
    report = export(run, "hf", tmp_path / "out", dtype="fp32", merge_onto="16bit", device="cpu")
    assert report.merged_onto == "16bit" and report.against_trained is not None
    assert report.against_trained.mean_kl > 0.01 > report.comparison.mean_kl
    live = whippet.load(base, base="fp32", adapter=run / "adapter", device="cpu").logits(IDS)
    assert (live - theirs(tmp_path / "out")).abs().max() < 1e-3
    assert "against the model as trained" in str(report)


def test_16_bit_of_a_16_bit_run_is_the_same(tmp_path: Path) -> None:
    _, run = tiny_run(tmp_path, held="fp32")
    report = export(run, "hf", tmp_path / "out", merge_onto="16bit", device="cpu")
    assert report.against_trained is None and report.bases_distance is None


@pytest.mark.parametrize(("dtype", "spelt"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_each_dtype_is_written_and_judged_by_its_bound(run: Path, tmp_path: Path, dtype: str, spelt: str) -> None:
    report = export(run, "hf", tmp_path / "out", dtype=dtype, device="cpu")
    assert report.passed and 0 <= report.comparison.mean_kl <= report.bound_mean_kl
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == spelt
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {f"torch.{spelt}"}  # noqa: SIM118
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir()
                               if path.name not in ("verify.json", "README.md"))  # fmt: skip


def test_the_folder_holds_everything_that_transformers_wants(run: Path, tmp_path: Path) -> None:
    import transformers

    out = export(run, "hf", tmp_path / "out", device="cpu").out
    config = json.loads((out / "config.json").read_text())
    assert "rope_theta" in config and "rope_parameters" not in config and "dtype" not in config
    generation = json.loads((out / "generation_config.json").read_text())
    # </s> is the checkpoint's end, <|im_end|> the template's.
    assert generation == {"bos_token_id": 0, "eos_token_id": [1, 3], "pad_token_id": 4}
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (out / "chat_template.jinja").read_text() == CHAT
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "two lazy dogs"}]
    wanted = whippet.load(run, device="cpu").prompt_ids(messages)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == wanted
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == [1, 3]


def test_verify_json_holds_the_figures(run: Path, tmp_path: Path) -> None:
    report = export(run, "hf", tmp_path / "out", device="cpu")
    told = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert told == json.loads(json.dumps(report.as_dict()))
    assert told["passed"] is True and told["mean_kl"] == report.comparison.mean_kl and told["bound_mean_kl"] == 1e-3
    assert told["positions"] > 300 and told["out"] == "out" and told["parameters"] == 112_448
    assert str(tmp_path) not in json.dumps(told)


def test_the_card_is_the_runs_with_the_verdict(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-token")
    loss_png(records(), run / "loss.png", "x")
    out = export(run, "hf", tmp_path / "out", device="cpu").out
    card = (out / "README.md").read_text()
    for text in (
        "within its bound",
        "| lora.r | 4 |",
        "1.1856",
        "![The loss over the steps](loss.png)",
        "made from `base`",
    ):
        assert text in card, text
    assert (out / "loss.png").read_bytes() == (run / "loss.png").read_bytes()
    for path in out.iterdir():
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path
        assert b"planted-token" not in path.read_bytes(), path


def test_shards_are_bounded_and_load(run: Path, tmp_path: Path) -> None:
    whole = export(run, "hf", tmp_path / "whole", dtype="fp32", device="cpu").out
    out = export(run, "hf", tmp_path / "out", dtype="fp32", device="cpu", max_shard_bytes=100_000).out
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size < 110_000 for shard in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert torch.equal(ours(whole, "fp32"), ours(out, "fp32")) and torch.equal(theirs(whole), theirs(out))


def test_an_adapter_is_written_for_peft(tmp_path: Path) -> None:
    base, run = tiny_run(tmp_path, held="fp32")
    report = export(run, "adapter", tmp_path / "out", device="cpu")
    assert report.passed and report.comparison.max_difference == 0 and report.merged_onto is None
    assert (ours(run) - theirs(base, tmp_path / "out")).abs().max() < 1e-4
    assert torch.equal(ours(tmp_path / "out", "fp32"), ours(run))
    assert 'library_name: "peft"' in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("r", "said"), [(17, "vLLM wants --max-lora-rank 32 for it"), (520, "vLLM takes ranks up to 512")]
)
def test_what_vllm_will_not_take_is_said_wherever_one_looks(r: int, said: str, tmp_path: Path) -> None:
    _, run = tiny_run(tmp_path, held="fp32", r=r)
    report = export(run, "adapter", tmp_path / "out", device="cpu")
    assert [said in note for note in report.notes] == [True] and f"note: {said}" in str(report)
    assert said in (tmp_path / "out" / "README.md").read_text()
    assert said in json.loads((tmp_path / "out" / "verify.json").read_text())["notes"][0]
    merged = export(run, "hf", tmp_path / "hf", device="cpu")
    assert not merged.notes and said not in (tmp_path / "hf" / "README.md").read_text()


def test_an_adapters_folder_and_a_checkpoint_export_too(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, run = made
    merged = export(run / "adapter", "hf", tmp_path / "a", dtype="fp32", device="cpu")
    assert merged.trained_base == "fp32" and merged.merged_onto == "trained"
    plain = export(base, "hf", tmp_path / "b", dtype="fp32", device="cpu")
    assert plain.merged_onto is None and plain.comparison.max_difference == 0
    assert torch.equal(theirs(base), theirs(tmp_path / "b"))
    assert "written anew" in (tmp_path / "b" / "README.md").read_text()


def test_a_full_fine_tune_exports(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_checkpoint(run / "model", seed=5)
    write_recipe(Recipe(model=ModelOptions(path="org/base"), train=TrainOptions(method="full")), run / "recipe.toml")
    report = export(run, "hf", dtype="fp32", device="cpu")
    assert report.out == run / "hf" and torch.equal(theirs(run / "model"), theirs(run / "hf"))
    card = (run / "hf" / "README.md").read_text()
    assert "# run\n" in card and "all weights trained" in card and 'base_model: "org/base"' in card


def test_a_4_bit_checkpoint_is_written_whole(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    assert bitsandbytes
    import transformers

    base = checkpoint_of("llama", tmp_path / "base")
    quantisation = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=quantisation, device_map="cpu")
    quantised = tmp_path / "quantised"
    shutil.copytree(base, quantised, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(quantised)
    run = write_run(tmp_path / "run", quantised)
    report = export(run, "hf", tmp_path / "out", dtype="fp32", device="cpu")
    assert report.passed and report.bases_distance is None
    assert (ours(run) - theirs(tmp_path / "out")).abs().max() < 1e-3
    with pytest.raises(UsageError, match="4 bit itself"):
        export(run, "hf", tmp_path / "other", merge_onto="16bit", device="cpu")


def test_a_named_template_and_pad_token_go_along(made: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[1], run)
    recipe = (run / "recipe.toml").read_text()
    recipe = recipe.replace("[data]\n", '[data]\ntemplate = "zephyr"\n').replace(
        "[model]\n", '[model]\npad_token = "<s>"\n'
    )
    (run / "recipe.toml").write_text(recipe)
    out = export(run, "hf", tmp_path / "out", device="cpu").out
    template = (out / "chat_template.jinja").read_text()
    assert template != CHAT and "<|assistant|>" in template
    assert json.loads((out / "tokenizer_config.json").read_text())["pad_token"] == "<s>"
    assert json.loads((out / "generation_config.json").read_text())["pad_token_id"] == 0


def test_how_the_base_wants_to_be_drawn_is_kept(made: tuple[Path, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(made[0], base)
    (base / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1], "odd": "dropped"})
    )
    out = export(base, "hf", tmp_path / "out", device="cpu").out
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6 and generation["do_sample"] is True and "odd" not in generation


# --- what is refused, and what fails on the way ---------------------------------------------------------------------


def test_wrong_words_are_refused_with_the_known_ones(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--to gguf: not known; known: hf, adapter"):
        export(run, "gguf", tmp_path / "out")
    with pytest.raises(UsageError, match="known: bf16, fp16, fp32"):
        export(run, "hf", tmp_path / "out", dtype="int8")
    with pytest.raises(UsageError, match="known: trained, 16bit"):
        export(run, "hf", tmp_path / "out", merge_onto="4bit")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(made: tuple[Path, Path], tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        export(made[1], "hf", used)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        export(made[1], "hf", tmp_path / "file")
    with pytest.raises(UsageError, match="adapter is there already"):
        export(made[1], "adapter")
    with pytest.raises(UsageError, match="--out DIR"):
        export(made[0], "hf")
    with pytest.raises(UsageError, match="has no adapter"):
        export(made[0], "adapter", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "thesis.txt", "used"]


def test_an_empty_folder_is_filled(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(run, "hf", tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "model.safetensors").is_file() and partials(tmp_path) == []


def test_too_little_disk_is_said_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WhippetError, match=r"needs 64\.2 MiB and 1000 B are free") as error:
        export(run, "hf", tmp_path / "deep" / "out", device="cpu")
    assert error.value.exit_code == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), WhippetError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["disk full", "interrupted"],
)
@pytest.mark.parametrize("after", [0, 5])
def test_a_failure_on_the_way_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, raised: type, after: int
) -> None:
    real = module.merged_tensors

    def failing(*args: Any) -> Iterator[tuple[str, Tensor]]:
        for index, item in enumerate(real(*args)):
            if index == after:
                raise failure
            yield item

    monkeypatch.setattr(module, "merged_tensors", failing)
    with pytest.raises(raised):
        export(run, "hf", tmp_path / "out", device="cpu", max_shard_bytes=50_000)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export(run, "hf", tmp_path / "out", device="cpu")


def test_what_a_killed_export_left_is_no_obstacle(run: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "model-00001.safetensors.partial").write_bytes(b"half")
    export(run, "hf", tmp_path / "out", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "model-00001.safetensors.partial" not in [path.name for path in (tmp_path / "out").iterdir()]


def test_a_wrong_merge_is_caught(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter left out of one projection: names, shapes and bytes are all as written, only the answers differ."""
    real = module.merged_tensors

    def wrong(decoder: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        decoder.layers[1].down.adapters.clear()
        yield from real(decoder, dtype)

    monkeypatch.setattr(module, "merged_tensors", wrong)
    with pytest.raises(GateError, match="answer differently") as error:
        export(run, "hf", tmp_path / "out", device="cpu")
    assert error.value.exit_code == 4
    assert json.loads((tmp_path / "out" / "verify.json").read_text())["passed"] is False
    assert "do not rely on it" in (tmp_path / "out" / "README.md").read_text()


def test_a_wrong_config_is_caught(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.config_to_hf
    monkeypatch.setattr(module, "config_to_hf", lambda *a, **k: real(*a, **k) | {"rope_theta": 500.0})
    with pytest.raises(GateError, match="answer differently"):
        export(run, "hf", tmp_path / "out", device="cpu")


def test_values_beyond_fp16_are_an_error_and_nothing_is_left(made: tuple[Path, Path], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made[0], size=400.0)
    with pytest.raises(GateError, match="too large for fp16, use --dtype bf16"):
        export(run, "hf", tmp_path / "out", dtype="fp16", device="cpu")
    assert not (tmp_path / "out").exists() and partials(tmp_path) == []


def test_a_run_that_links_elsewhere_publishes_nothing(made: tuple[Path, Path], tmp_path: Path) -> None:
    """A run's folder may come from a stranger; what its links lead to must not get into an export."""
    folder, secret = tmp_path / "run", tmp_path / "secret"
    shutil.copytree(made[1], folder)
    secret.write_text("private")
    (folder / "loss.png").unlink(missing_ok=True)
    (folder / "loss.png").symlink_to(secret)
    with pytest.raises(UsageError, match="links out of a folder are not followed"):
        export(folder, to="adapter", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
