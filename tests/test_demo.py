"""``whippet demo``: its data, its story in 80 columns, and what it says and returns when the skill is not learnt."""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path

import pytest
from demo_data import records
from tiny_checkpoint import SMOKE, write_random_checkpoint
from tiny_world import training_line

from whippet import demo as story
from whippet.cli import demo as command
from whippet.errors import WhippetError
from whippet.recipe import read_recipe


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [training_line(2, number) for number in range(300)]


@pytest.fixture
def toy(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo with a random toy of a model and two steps of training."""
    folder = tmp_path / "tiny"
    write_random_checkpoint(folder, lines, SMOKE, 0)
    monkeypatch.setattr(story, "MODEL", folder)
    monkeypatch.setattr(story, "MAX_NEW_TOKENS", 8)
    train = story.RECIPE["train"] | {"max_steps": 2}
    monkeypatch.setattr(story, "RECIPE", story.RECIPE | {"train": train})
    return folder


def test_bundled_records_are_the_generators() -> None:
    train, held_out = records(1)
    for path, made in ((story.TRAIN, train), (story.HELD_OUT, held_out)):
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == made
    assert len(train) >= 500 and len(held_out) == 100


def test_held_out_dogs_have_names_of_their_own() -> None:
    names = [
        {messages[-1].content.split(", ")[0] for messages in story.read_records(path)}
        for path in (story.TRAIN, story.HELD_OUT)
    ]
    assert not names[0] & names[1]
    assert len(names[1]) > 30


def test_the_skill_is_not_of_the_world(lines: list[str]) -> None:
    assert not any(re.search(r"\d y, \d+ kg", line) or "ennel" in line for line in lines)


def test_five_acts_in_80_columns_and_a_failure_said_clearly(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(WhippetError, match=r"0 of 100 held-out records right, that is 0\.0 %, wanted at least 90\.0 %"):
        command.run(argparse.Namespace(out=str(out), seed=0, json=False))
    told = capsys.readouterr().out
    for number, name in enumerate(("A small model", "What it cannot do", "It learns", "What it can do now"), 1):
        assert f"{number}  {name}" in told
    long = [line for line in told.splitlines() if len(line) > 80 and str(tmp_path) not in line]
    assert long == []
    for name in ("adapter/adapter_model.safetensors", "hf/model.safetensors", "loss.png", "report.html", "README.md"):
        assert (out / name).is_file()


def test_json_is_alone_on_stdout(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WhippetError):
        command.run(argparse.Namespace(out=str(tmp_path / "run"), seed=0, json=True))
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["passed"] is False and summary["asked"] == 100 and len(summary["samples"]) == 3
    assert "5  What you hold" in captured.err


def test_exam_counts_to_the_letter() -> None:
    exam = story.Exam(("a | b", "a | b ", ""), ("a | b", "a | b", "x"), 0.1)
    assert exam.right == 1 and exam.share == pytest.approx(1 / 3)


def test_default_folder_is_a_free_one(tmp_path: Path) -> None:
    wanted = tmp_path / "demo"
    assert story.free_folder(wanted) == wanted
    wanted.mkdir()
    (tmp_path / "demo-2").mkdir()
    assert story.free_folder(wanted) == tmp_path / "demo-3"


def test_long_answers_are_cut_to_the_line() -> None:
    stream = io.StringIO()
    story.Story(stream).pair("why " * 60, [("before", "x" * 200), ("after", "one\ntwo")])
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())
    assert "one / two" in stream.getvalue()


@pytest.mark.long
def test_the_demonstration_teaches(tmp_path: Path) -> None:
    result = story.demo(tmp_path / "run", stream=io.StringIO())
    assert result.before.share <= 0.02
    assert result.passed
    assert result.seconds < 180


def test_the_recipe_file_holds_the_settings_of_the_demo() -> None:
    recipe = read_recipe(Path(__file__).resolve().parents[1] / "recipes" / "tiny_qlora_cpu.toml")
    for table, keys in story.RECIPE.items():
        for key, wanted in keys.items():
            assert getattr(getattr(recipe, table), key) == wanted, f"{table}.{key}"
