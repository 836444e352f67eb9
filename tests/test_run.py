"""Whole runs through ``whippet.finetune``: what they leave, how they go on, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_train import losses, settings, write_records
from safetensors.torch import load_file, save_file

import whippet
from whippet.errors import DataError, MissingExtra, ModelError, UsageError, WhippetError
from whippet.recipe import make_recipe, read_recipe
from whippet.run import Run, finetune, plan
from whippet.train import checkpoint
from whippet.train.folder import claimed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "one"
    tables = settings(
        model={"base": "nf4"},
        data={"eval_fraction": 0.2},
        train={"max_steps": 10, "eval_every": 5, "sample_every": 5, "track": ["tensorboard"], "learning_rate": 0.02},
    )
    return finetune(tiny_checkpoint, data, out=out, **tables)


def refuses(kind: type[Exception], said: str, *arguments: Any, out: Path, **tables: Any) -> None:
    """The call fails with this, in one line, and writes nothing."""
    with pytest.raises(kind, match=said):
        finetune(*arguments, out=out, **tables)
    assert not out.exists()


def test_a_run_leaves_everything(finished: Run) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {
        "recipe.toml", "plan.json", "data.json", "environment.json", "metrics.jsonl", "samples.jsonl", "loss.png",
        "report.html", "README.md", "adapter", "checkpoints", "summary.json", "tensorboard",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".partial")]
    adapter = {path.name for path in (finished.folder / "adapter").iterdir()}
    assert adapter >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"}
    assert read_recipe(finished.folder / "recipe.toml").out == str(finished.folder)
    assert not (finished.folder / "bad-steps.jsonl").exists()
    assert json.loads((finished.folder / "plan.json").read_text())["steps"] == 10


def test_its_metrics_tell_what_is_asked_first(finished: Run) -> None:
    steps = [record for record in finished.metrics if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 11))
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert steps[-1]["tokens_seen"] == sum(record["tokens"] for record in steps)
    for key in ("accuracy", "learning_rate", "grad_norm", "trained_tokens", "epoch"):
        assert all(record[key] >= 0 for record in steps), key
    assert all(record["time"]["tokens_per_s"] > 0 and record["time"]["peak_bytes"] > 0 for record in steps)
    evaluated = {record["step"]: record["eval_loss"] for record in finished.metrics if "eval_loss" in record}
    assert sorted(evaluated) == [0, 5, 10] and evaluated[10] < evaluated[0]
    samples = [json.loads(line) for line in (finished.folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 0, 0, 5, 5, 5, 10, 10, 10]


def test_the_model_from_memory_and_from_disk_are_the_same(finished: Run) -> None:
    ids = [3, 40, 41, 42, 43]
    fresh = Run(finished.folder).model().logits(ids)
    torch.testing.assert_close(finished.model().logits(ids), fresh, rtol=1e-4, atol=1e-4)
    with finished.model().base():
        assert not torch.allclose(finished.model().logits(ids), fresh, atol=1e-2)
    assert finished.chat("the quick", max_new_tokens=4).role == "assistant"


def test_its_summary(finished: Run) -> None:
    told = finished.summary()
    assert told["steps"] == 10 and told["loss_last"] < told["loss_first"]
    assert told["result"] == str(finished.folder / "adapter")
    assert json.dumps(told)


def test_what_vllm_wants_is_said_at_the_end(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tables = settings(lora={"r": 32, "targets": ["q_proj"]}, train={"max_steps": 1})
    run = finetune(tiny_checkpoint, data, out=tmp_path / "run", **tables)
    said = "vLLM wants --max-lora-rank 32 for it"
    assert run.summary()["notes"] == [said] and f"note: {said}" in capfd.readouterr().err
    cards = [(place / "README.md").read_text() for place in (run.folder, run.folder / "adapter")]
    assert [said in card.replace("\\", "") for card in cards] == [False, True]


def test_a_finished_run_says_so(finished: Run, capfd: pytest.CaptureFixture[str]) -> None:
    before = (finished.folder / "metrics.jsonl").read_bytes()
    again = finetune(recipe=finished.folder / "recipe.toml")
    assert "already finished" in capfd.readouterr().err
    assert (finished.folder / "metrics.jsonl").read_bytes() == before and again.summary() == finished.summary()


def test_a_longer_run_goes_on(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    finetune(tiny_checkpoint, data, out=tmp_path / "a", **settings(train={"max_steps": 4}))
    run = finetune(tiny_checkpoint, data, out=tmp_path / "a", **settings(train={"max_steps": 6, "save_every": 3}))
    assert [record["step"] for record in losses(run.folder)] == [1, 2, 3, 4, 5, 6]
    assert run.summary()["steps"] == 6
    assert checkpoint.steps(run.folder / "checkpoints") == [4, 6]


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"lora": {"r": 3}}, "lora.r = 2, not 3"),
        ({"train": {"learning_rate": 0.5}}, "train.learning_rate"),
        ({"data": {"max_length": 99}}, "data.max_length"),
        ({"model": {"base": "nf4"}}, "model.base = 'fp32', not 'nf4'"),
    ],
)
def test_another_recipe_may_not_use_the_folder(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, tables: dict[str, Any], key: str
) -> None:
    out = tmp_path / "a"
    finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 1}))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    base = settings(train={"max_steps": 1})
    with pytest.raises(UsageError, match="choose another --out") as caught:
        finetune(tiny_checkpoint, data, out=out, **{t: {**base[t], **tables.get(t, {})} for t in base})
    assert key in str(caught.value) and caught.value.exit_code == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_other_data_under_the_same_name_are_noticed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "d.jsonl")
    finetune(tiny_checkpoint, data, out=tmp_path / "a", **settings(train={"max_steps": 2}))
    write_records(data, seed=1)
    with pytest.raises(UsageError, match="the training examples are not those that this run began with"):
        finetune(tiny_checkpoint, data, out=tmp_path / "a", **settings(train={"max_steps": 4}))


def test_full_training_leaves_a_checkpoint_that_answers(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    tables = {"train": {"method": "full", "max_steps": 3, "tokens_per_step": 160}, "model": {"device": "cpu"}}
    run = finetune(tiny_checkpoint, data, out=tmp_path / "full", **tables)
    ids = [3, 40, 41, 42, 43]
    fresh = whippet.load(run.folder / "model", device="cpu", base="fp32").logits(ids)
    torch.testing.assert_close(fresh, run.model().logits(ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Run(run.folder).model().logits(ids), fresh, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whippet.load(tiny_checkpoint, device="cpu", base="fp32").logits(ids), fresh, atol=1e-3)
    assert (run.folder / "model" / "generation_config.json").is_file()


def test_a_folder_that_is_something_else_is_left_alone(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(UsageError, match=r"not empty and no run of whippet \(it holds 'cat.png'\)"):
        finetune(tiny_checkpoint, data, out=tmp_path / "photos")
    with pytest.raises(UsageError, match="a file; --out must name a folder"):
        finetune(tiny_checkpoint, data, out=data)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_a_folder_in_use_is_refused(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 1}))
    with claimed(out), pytest.raises(UsageError, match="in use by another process") as caught:
        finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 2}))
    assert caught.value.exit_code == 2
    (out / ".lock").write_text("left by a process that was killed")
    finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 2}))


def test_mistakes_leave_no_trace(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "run"
    base = settings()
    refuses(UsageError, "Did you mean 'lora.r'", tiny_checkpoint, data, out=out, lora={"rank": 3})
    refuses(UsageError, "Did you mean 'train.max_steps'", tiny_checkpoint, data, out=out, **{"train.maxsteps": 3})
    refuses(UsageError, "no such folder", tmp_path / "none", data, out=out, **base)
    refuses(DataError, "none.jsonl", tiny_checkpoint, tmp_path / "none.jsonl", out=out, **base)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refuses(DataError, "empty.jsonl", tiny_checkpoint, empty, out=out, **base)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(data.read_text().splitlines()[0] + "\n{nonsense\n")
    refuses(DataError, "broken.jsonl:2", tiny_checkpoint, broken, out=out, **base)
    refuses(UsageError, "memory: training needs at least", tiny_checkpoint, data, out=out,
            memory={"budget": "100KiB"}, **base)  # fmt: skip
    refuses(UsageError, "did you mean .chatml", tiny_checkpoint, data, out=out,
            **settings(data={"template": "chatmml"}))  # fmt: skip
    refuses(DataError, "longer than", tiny_checkpoint, data, out=out, **settings(data={"max_length": 4}))
    refuses(UsageError, "set train.max_steps", tiny_checkpoint, data, out=out,
            **settings(data={"streaming": True}, train={"max_steps": 0}))  # fmt: skip
    assert not out.parent.exists()


def test_bad_checkpoints_leave_no_trace(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Whatever the files' headers tell is told by ``plan`` too, and before a run's folder is made."""
    weights, index = "model.safetensors", "model.safetensors.index.json"
    whole = (tiny_checkpoint / weights).read_bytes()
    held = load_file(tiny_checkpoint / weights)
    (tmp_path / weights).write_bytes(whole)
    some, up = sorted(held)[0], "model.layers.0.mlp.up_proj.weight"

    def mapped(folder: Path, file: str) -> None:
        (folder / weights).rename(folder / "a.safetensors")
        (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(held, "a.safetensors") | {some: file}}))

    def linked(folder: Path) -> None:
        (folder / weights).unlink()
        (folder / weights).symlink_to(tmp_path / weights)

    def saved(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / weights)

    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "truncated": (lambda folder: (folder / weights).write_bytes(whole[:-100]), "cut off or damaged"),
        "short": (lambda folder: (folder / weights).write_bytes(whole[:5]), "too short for a safetensors file"),
        "header": (lambda folder: (folder / weights).write_bytes(whole[:8] + b"}}" + whole[10:]), "not valid JSON"),
        "pickle": (
            lambda folder: (folder / weights).write_bytes(b"\x80\x04\x95" + bytes(99)),
            "a pickle, which can run",
        ),
        "climbing": (lambda folder: mapped(folder, "../x.safetensors"), "weight_map: unsafe file name '../x.safe"),
        "absent": (lambda folder: mapped(folder, "b.safetensors"), "b.safetensors: missing, though the index names it"),
        "link": (linked, f"leads to {tmp_path / weights}, outside"),
        "missing": (lambda folder: saved(folder, {k: v for k, v in held.items() if k != up}), f"the first is '{up}'"),
        "unexpected": (
            lambda folder: saved(folder, held | {"x": torch.ones(1)}),
            "unexpected tensors, the first is 'x'",
        ),
        "misshapen": (lambda folder: saved(folder, held | {up: torch.ones(3, 64)}), r"has shape \[3, 64\]"),
        "none": (lambda folder: (folder / weights).unlink(), "neither model.safetensors nor"),
    }
    out = tmp_path / "out" / "run"
    for name, (damage, said) in cases.items():
        folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "models" / name))
        damage(folder)
        refuses(ModelError, said, folder, data, out=out, **settings())
        with pytest.raises(ModelError, match=said) as caught:
            plan(make_recipe(settings(model={"path": str(folder)}, data={"sources": [str(data)]}), {"out": out}))
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
        assert not out.parent.exists(), name


def test_a_plan_of_a_hub_id_fetches_no_weights(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "cached"))
    weights = folder / "model.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(weights), "model-1.safetensors")}
    weights.unlink()
    asked: list[list[str]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    tables = settings(model={"path": "org/name"}, data={"sources": [str(data)]})
    recipe = make_recipe(tables, {"out": tmp_path / "run"})
    assert plan(recipe).plan.steps == 8
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert plan(recipe).plan.steps == 8
    assert len(asked) == 2 and not any("safetensors" in pattern for patterns in asked for pattern in patterns)
    (folder / "model-1.safetensors").write_bytes((tiny_checkpoint / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match="cut off or damaged"):
        plan(recipe)
    (folder / "model-1.safetensors").unlink()
    refuses(ModelError, "missing, though the index names it", "org/name", data, out=tmp_path / "run", **settings())
    assert "*.safetensors" in asked[-1]


def test_a_missing_extra_is_named_before_anything_is_done(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tables = settings(train={"track": ["wandb"]})
    refuses(MissingExtra, r"pip install 'whippet\[wandb\]'", tiny_checkpoint, data, out=tmp_path / "o", **tables)


def test_a_disk_too_small_is_named_before_anything_is_written(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refuses(WhippetError, r"needs .*bytes\) on disk and 1000 B \(1,000 bytes\) are free",
            tiny_checkpoint, data, out=tmp_path / "o", **settings())  # fmt: skip


def test_python_names_and_recipes_mean_the_same(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    runs = [
        finetune(tiny_checkpoint, data, out=tmp_path / "a", **settings(train={"max_steps": 2})),
        finetune(model=str(tiny_checkpoint), data=[data], out=tmp_path / "b",
                 **{f"{table}.{key}": value for table, keys in settings(train={"max_steps": 2}).items()
                    for key, value in keys.items()}),
        finetune(out=tmp_path / "c", recipe=read_recipe(tmp_path / "a" / "recipe.toml")),
        finetune(recipe=tmp_path / "a" / "recipe.toml", out=tmp_path / "d"),
    ]  # fmt: skip
    assert [losses(run.folder) for run in runs[1:]] == [losses(runs[0].folder)] * 3


def test_epochs_decide_where_there_are_no_steps(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    tables = settings(train={"max_steps": 0, "epochs": 2, "tokens_per_step": 700})
    run = finetune(tiny_checkpoint, data, out=tmp_path / "a", **tables)
    told = json.loads((run.folder / "data.json").read_text())
    assert run.summary()["tokens"] == 2 * told["train_tokens"]
    assert run.metrics[-1]["step"] == json.loads((run.folder / "plan.json").read_text())["steps"]


def test_streams_train(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    tables = settings(data={"streaming": True}, train={"max_steps": 3, "sample_every": 3, "sample_prompts": ["hi"]})
    run = finetune(tiny_checkpoint, data, out=tmp_path / "a", **tables)
    assert len(losses(run.folder)) == 3


def test_plan_writes_nothing_and_is_json(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = make_recipe(settings(model={"path": str(tiny_checkpoint)}, data={"sources": [str(data)]}), {"out": out})
    report = plan(recipe)
    assert max(map(len, str(report).splitlines())) <= 80
    told = json.loads(json.dumps(report.as_dict()))
    assert told["steps"] == 8 and told["data"]["kept"] == 40
    assert not out.exists()


def test_the_command_line(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    sets = [f"--set={t}.{k}={json.dumps(v) if not isinstance(v, str) else v}" for t, d in
            settings(train={"max_steps": 2}).items() for k, v in d.items()]  # fmt: skip
    command = [sys.executable, "-m", "whippet", "finetune", str(tiny_checkpoint), str(data),
               "--out", str(tmp_path / "run"), "--json", *sets]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    again = subprocess.run([*command, "--set=lora.r=7"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 2 and "choose another --out" in again.stderr
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    planned = subprocess.run(
        [*command[:3], "plan", str(broken), str(data)], capture_output=True, text=True, timeout=120
    )
    assert (planned.returncode, planned.stdout) == (2, "")
    assert "neither model.safetensors nor" in planned.stderr and planned.stderr.count("\n") == 1
