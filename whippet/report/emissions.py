"""From the energy of a run to CO2: sums over its sessions, and the arithmetic of a model card.

Comes in: the records of ``energy.jsonl`` (``meter.py`` writes them) and what the recipe says of the place. Goes out:
``Energy`` and ``Footprint``. The formulas are those of the Llama cards (https://arxiv.org/abs/2302.13971, section 6):

    energy of the building [kWh] = energy of the machine [kWh] · PUE
    location-based [g CO2eq]     = energy of the building · grams per kWh of the country's grid
    market-based [g CO2eq]       = location-based · (1 - share matched by renewable energy)

``docs/energy.md`` has the arithmetic of Llama 3.3's own row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whippet.report.grid import GRID, Grid
from whippet.report.metrics import value_of

JOULES_PER_KWH = 3.6e6
GRAMS_PER_TONNE = 1e6
COUNTER, ESTIMATE, PARTIAL = "counter", "estimate", "partial"
"""How a part's energy is known: read from hardware; watts times time; a counter that fell silent, so a lower bound."""


@dataclass(frozen=True)
class Part:
    """What one kind of chip took."""

    joules: float | None
    """None where not even an estimate is possible, in some session of the run."""
    how: tuple[str, ...]
    """``counter``, ``estimate``, ``partial``: all that the sessions say."""
    seconds: float
    """For how long it was held."""


@dataclass(frozen=True)
class Energy:
    """What the whole run took, over every time that it was started, work that a crash undid included."""

    sessions: int
    seconds: float
    device: str
    """Name of what trained."""
    gpu: Part | None
    """None if no GPU was held."""
    cpu: Part

    @property
    def kwh(self) -> float | None:
        """Of the machine, without the building around it; None if a part is not known."""
        parts = [part.joules for part in (self.gpu, self.cpu) if part is not None]
        return None if None in parts else sum(joules for joules in parts if joules is not None) / JOULES_PER_KWH

    @property
    def how(self) -> tuple[str, ...]:
        """All ways in which the figure is known."""
        return tuple(sorted({*(self.gpu.how if self.gpu is not None else ()), *self.cpu.how}))


@dataclass(frozen=True)
class Footprint:
    """Greenhouse gas of an amount of energy. Grams of CO2 equivalent."""

    kwh: float
    """Of the building."""
    grid: Grid
    pue: float
    renewable_share: float

    @property
    def location_grams(self) -> float:
        """By the grid that the power came from."""
        return self.kwh * self.grid.grams_per_kwh

    @property
    def market_grams(self) -> float:
        """Less what was matched by purchases of renewable energy."""
        return self.location_grams * (1 - self.renewable_share)


def total(records: Sequence[Mapping[str, Any]]) -> Energy | None:
    """The sum over the sessions: of each its last record, for records count from its start. None without any."""
    last = {record["session"]: record for record in records if isinstance(record.get("session"), int)}
    if not last:
        return None
    sessions = list(last.values())
    gpu = _part([session for session in sessions if isinstance(session.get("gpu"), Mapping)], "gpu")
    cpu = _part(sessions, "cpu")
    assert cpu is not None
    return Energy(
        sessions=len(sessions),
        seconds=sum(value_of(session, "seconds") or 0.0 for session in sessions),
        device=", ".join(dict.fromkeys(str(session.get("device", "")) for session in sessions)),
        gpu=gpu,
        cpu=cpu,
    )


def footprint(kwh: float, place: Mapping[str, Any]) -> Footprint | None:
    """CO2 of ``kwh`` of a machine, by the recipe's table ``[energy]``; None if it names no country that is known."""
    grid = GRID.get(str(place.get("country")))
    if grid is None:
        return None
    pue = value_of(place, "pue") or 1.0
    return Footprint(kwh * pue, grid, pue, value_of(place, "renewable_share") or 0.0)


def figures(records: Sequence[Mapping[str, Any]], place: Mapping[str, Any]) -> dict[str, float | None]:
    """``energy_kwh`` of the machine and ``co2eq_grams`` by location, for a run's summary; None where not known."""
    energy = total(records)
    kwh = energy.kwh if energy is not None else None
    emitted = footprint(kwh, place) if kwh is not None else None
    return {"energy_kwh": kwh, "co2eq_grams": emitted.location_grams if emitted is not None else None}


def gpu_kwh(gpu_hours: float, watts: float) -> float:
    """The estimate of the Llama cards: every GPU at its full power for as long as it was held."""
    return gpu_hours * watts / 1000


def _part(sessions: Sequence[Mapping[str, Any]], key: str) -> Part | None:
    if not sessions:
        return None
    joules = [value_of(session, f"{key}.joules") for session in sessions]
    known = [value for value in joules if value is not None]
    how = sorted({str(part["how"]) for session in sessions if isinstance(part := session.get(key), Mapping)})
    seconds = sum(value_of(session, "seconds") or 0.0 for session in sessions)
    return Part(sum(known) if len(known) == len(joules) else None, tuple(how), seconds)
