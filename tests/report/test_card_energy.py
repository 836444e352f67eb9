"""Training energy on the card: the columns of the Llama cards, the hub's key, nothing that is not known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from whippet.report.card import CardFacts, model_card
from whippet.report.folder import RunFacts

PLACE = {"country": "FRA", "pue": 1.1, "renewable_share": 0.75}


def session(number: int, seconds: float, gpu: float | None, cpu: float = 3.6e5, how: str = "counter") -> dict[str, Any]:
    return {
        "step": 9, "session": number, "seconds": seconds, "device": "NVIDIA H100 80GB HBM3",
        "gpu": {"joules": gpu, "how": how}, "cpu": {"joules": cpu, "how": "estimate"},
    }  # fmt: skip


def facts(place: dict[str, Any], *sessions: dict[str, Any]) -> CardFacts:
    recipe = {"train": {"method": "lora"}, "model": {"base": "nf4"}, "energy": place}
    run = RunFacts(Path("my-run"), recipe, energy=sessions)
    return CardFacts("my-run", "org/base", "adapter", run)


def test_a_run_that_was_resumed_adds_up_and_the_hub_reads_it(tmp_path: Path) -> None:
    """Sessions of 5 and 1 hours; 2.4 + 0.5 kWh of the GPU and 0.2 of the processor; a PUE of 1.1; 56 g/kWh."""
    told = facts(PLACE, session(1, 9000, 4e6), session(1, 18000, 8.64e6), session(2, 3600, 1.8e6))
    card = model_card(told)
    (tmp_path / "README.md").write_text(card)
    read = metadata_load(tmp_path / "README.md")["co2_eq_emissions"]
    assert read["emissions"] == pytest.approx(3.1 * 1.1 * 56.0, rel=1e-3)
    assert read["training_type"] == "fine-tuning" and read["geographical_location"] == "France"
    assert read["hardware_used"] == "NVIDIA H100 80GB HBM3" and "estimated" in read["source"]
    assert ModelCard(card).data.to_dict()["co2_eq_emissions"] == read
    section = card.split("## Training energy")[1].splitlines()
    heads, row = (line.split("|")[1:-1] for line in section if "| my-run" in line or "GPU hours" in line)
    assert [head.strip().split(" (")[-1] for head in heads] == ["", "GPU hours)", "W)", "tons CO2eq)", "tons CO2eq)"]
    assert [cell.strip() for cell in row] == ["my-run", "6", "516.7", "1.91e-4", "4.77e-5"]
    for text in (
        "3.1 kWh in 6:00:00", "over 2 starts", "the processor 0.2 kWh, estimated (5 W a busy core)",
        "the GPU 2.9 kWh, read from its own counter", "PUE of 1.1 and 56 g CO2eq/kWh", "France in 2023", "75.0 %",
    ):  # fmt: skip
        assert text in card, text


def test_without_a_country_there_is_energy_and_no_co2() -> None:
    card = model_card(facts({"pue": 1.0}, session(1, 3600, 3.6e6)))
    assert "co2_eq_emissions" not in card and "1.1 kWh" in card and "`energy.country` would" in card
    assert "| 1 | 1,100 | not known | not known |" in card


def test_an_unknown_gpu_makes_no_total() -> None:
    card = model_card(facts(PLACE, session(1, 3600, 3.6e6), session(2, 3600, None, how="estimate")))
    assert "co2_eq_emissions" not in card and "| not known | not known | not known |" in card
    assert "`energy.gpu_watts` in the recipe" in card


def test_watts_of_the_recipe_and_a_counter_that_fell_silent_are_told() -> None:
    card = model_card(facts({"gpu_watts": 350.0}, session(1, 3600, 1.26e6, how="estimate")))
    assert "the GPU 0.35 kWh, estimated (350 W, as the recipe says)" in card
    assert "fell silent, so at least" in model_card(facts({}, session(1, 3600, 1e6, how="partial")))


def test_a_processor_alone_has_no_gpu_hours() -> None:
    alone = session(1, 3600, None) | {"gpu": None, "device": "CPU (x86_64)"}
    card = model_card(facts(PLACE, alone))
    assert "hours, no GPU" in card and "| my-run | 1 | 100 |" in card and "the GPU" not in card


def test_tiny_emissions_stay_a_number(tmp_path: Path) -> None:
    """A number such as 1e-05 is text to YAML."""
    alone = session(1, 1, None, cpu=0.5844155844155844) | {"gpu": None}
    read = ModelCard(model_card(facts(PLACE, alone))).data.to_dict()["co2_eq_emissions"]["emissions"]
    assert isinstance(read, float) and read == 1e-5


def test_a_run_without_a_meter_has_no_section() -> None:
    assert "Training energy" not in model_card(facts(PLACE))
    assert "Training energy" not in model_card(dataclasses.replace(facts(PLACE), run=None))
