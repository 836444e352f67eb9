"""Energy in whole runs: measured, added up over starts, on the card and in the summary, and refused where it means
nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_train import settings, write_records
from huggingface_hub.repocard import metadata_load

from whippet.errors import UsageError
from whippet.report.emissions import total
from whippet.report.grid import GRID
from whippet.report.metrics import read_metrics
from whippet.run import Run, finetune

PLACE = {"country": "POL", "pue": 1.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def resumed(tiny_checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Started without a country, gone on with one: the whole run is told."""
    out = tmp_path_factory.mktemp("runs") / "one"
    finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 2}))
    assert finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 2})).summary()["co2eq_grams"] is None
    return finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 4}), energy=PLACE)


def test_a_resumed_run_adds_up(resumed: Run) -> None:
    records = read_metrics(resumed.folder / "energy.jsonl")
    assert [(record["session"], record["step"]) for record in records] == [(1, 2), (2, 4)]
    energy = total(records)
    assert energy is not None and energy.kwh is not None and energy.sessions == 2
    told = resumed.summary()
    assert told["energy_kwh"] == energy.kwh > 0
    assert told["co2eq_grams"] == pytest.approx(energy.kwh * 1.5 * GRID["POL"].grams_per_kwh)


def test_both_cards_and_the_page_tell_it(resumed: Run) -> None:
    for place in (resumed.folder, resumed.folder / "adapter"):
        told = metadata_load(place / "README.md")
        assert told is not None and told["co2_eq_emissions"]["geographical_location"] == "Poland"
        assert told["co2_eq_emissions"]["emissions"] == pytest.approx(resumed.summary()["co2eq_grams"], rel=1e-3)
        assert "over 2 starts" in (place / "README.md").read_text()
    assert "<dt>Energy</dt>" in (resumed.folder / "report.html").read_text()


def test_metrics_do_not_know_of_it(resumed: Run) -> None:
    assert "joules" not in (resumed.folder / "metrics.jsonl").read_text()


def test_watts_of_a_gpu_that_is_not_there_are_refused(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    tables = settings(train={"max_steps": 1}, model={"device": "cpu"})
    with pytest.raises(UsageError, match=r"energy\.gpu_watts = 300: no GPU trains here"):
        finetune(tiny_checkpoint, data, out=tmp_path / "a", **tables, energy={"gpu_watts": 300})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("country", "Frnace", "Did you mean 'FRA' \\(France\\)"), ("country", "usa", "Did you mean 'USA'"),
        ("country", "FR", "three letters"), ("country", "", "three letters"), ("pue", 0.9, "must be 1 or more"),
        ("renewable_share", 1.1, "must be from 0 to 1"), ("gpu_watts", 0, "must be above 0"),
        ("contry", "FRA", "Did you mean 'energy.country'"),
    ],
)  # fmt: skip
def test_keys_that_say_nothing_are_refused(data: Path, tmp_path: Path, key: str, value: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        finetune("some/model", data, out=tmp_path / "a", energy={key: value})


def test_the_licence_and_language_of_the_base_reach_what_was_made(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_checkpoint.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "README.md").write_text("---\nlicense: llama3.2\nlanguage:\n- en\n---\n")
    (base / "LICENSE.txt").write_text("the agreement")
    run = finetune(base, data, out=tmp_path / "run", **settings(train={"max_steps": 1}))
    made = run.folder / "adapter"
    told = metadata_load(made / "README.md")
    assert told is not None and (told["license"], told["language"]) == ("llama3.2", ["en"])
    assert (made / "LICENSE.txt").read_text() == "the agreement" and "Llama 3.2" in (made / "NOTICE").read_text()
    assert "# Llama-run" in (made / "README.md").read_text()
