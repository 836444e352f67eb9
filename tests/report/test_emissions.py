"""From energy to CO2: the Llama cards' own rows, and codecarbon's figures where it is installed."""

from __future__ import annotations

import pytest

from whippet.report.emissions import Footprint, figures, footprint, gpu_kwh, total
from whippet.report.grid import GRID, Grid

META = Grid("United States, as Meta counts it", 385.0, 2023)
META_PUE = 1.08


@pytest.mark.parametrize(
    ("hours", "tonnes", "within"),
    [(7.0e6, 2040, 0.0025), (1.46e6, 420, 0.02), (30.84e6, 8930, 0.01)],
    ids=["llama-3.3-70b", "llama-3.1-8b", "llama-3.1-405b"],
)
def test_the_llama_cards_row(hours: float, tonnes: float, within: float) -> None:
    """GPU hours times 700 W, a PUE of 1.08 and 385 g/kWh (``docs/energy.md``); all of it matched by renewables."""
    emitted = Footprint(gpu_kwh(hours, 700) * META_PUE, META, META_PUE, renewable_share=1.0)
    assert emitted.location_grams / 1e6 == pytest.approx(tonnes, rel=within)
    assert emitted.market_grams == 0


def test_its_row_by_our_table() -> None:
    """The same with the bundled figure of the United States: what a recipe with ``country = "USA"`` would give."""
    emitted = footprint(gpu_kwh(7.0e6, 700), {"country": "USA", "pue": META_PUE, "renewable_share": 1.0})
    assert emitted is not None and emitted.location_grams / 1e6 == pytest.approx(2040, rel=0.05)
    assert emitted.market_grams == 0


def test_energy_of_the_machine_and_of_the_building() -> None:
    records = [
        {"session": 1, "seconds": 10.0, "device": "CPU", "gpu": None, "cpu": {"joules": 3.6e6, "how": "counter"}}
    ]
    assert figures(records, {"country": "DEU", "pue": 1.5}) == {
        "energy_kwh": 1.0, "co2eq_grams": pytest.approx(1.5 * GRID["DEU"].grams_per_kwh),
    }  # fmt: skip
    assert figures(records, {}) == {"energy_kwh": 1.0, "co2eq_grams": None}
    assert figures([], {"country": "DEU"}) == {"energy_kwh": None, "co2eq_grams": None} and total([]) is None


def test_the_table_is_of_countries() -> None:
    assert len(GRID) > 200 and all(len(code) == 3 and code.isupper() for code in GRID)
    assert all(10 < grid.grams_per_kwh < 1500 and grid.year >= 2021 for grid in GRID.values())
    assert GRID["FRA"] == ("France", 56.0, 2023) and GRID["USA"].year == 2023


def test_codecarbon_says_the_same() -> None:
    emissions = pytest.importorskip("codecarbon.core.emissions", reason="codecarbon (extra 'energy') is not installed")
    from codecarbon.core.units import Energy as TheirEnergy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    theirs = emissions.Emissions(DataSource())
    for code in ("FRA", "USA", "DEU", "IND", "POL", "NOR", "BRA"):
        geo = GeoMetadata(country_iso_code=code, country_name=GRID[code].country, region=None)
        kilograms = theirs.get_private_infra_emissions(TheirEnergy.from_energy(kWh=3.0), geo)
        ours = footprint(3.0, {"country": code})
        assert ours is not None and ours.location_grams / 1000 == pytest.approx(kilograms, rel=2e-3), code
