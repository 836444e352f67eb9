"""The card's table of training energy, with the columns of the Llama cards.

Comes in: the run's facts. Goes out: markdown: hours, watts, CO2 by location and by market, then how each is known.
"""

from __future__ import annotations

from whippet.report.card_text import plain, table
from whippet.report.emissions import (
    COUNTER,
    ESTIMATE,
    GRAMS_PER_TONNE,
    JOULES_PER_KWH,
    PARTIAL,
    Energy,
    Footprint,
    Part,
    footprint,
    total,
)
from whippet.report.figures import duration, percent, short
from whippet.report.folder import RunFacts
from whippet.report.grid import SOURCE
from whippet.report.watts import CPU_CORE_WATTS

UNKNOWN = "not known"
HOW = {
    COUNTER: "read from its own counter",
    ESTIMATE: "estimated",
    PARTIAL: "read from a counter that fell silent, so at least",
}


def energy_section(run: RunFacts, name: str) -> str:
    """The section, empty if nothing was measured."""
    energy = total(run.energy)
    if energy is None or energy.seconds <= 0:
        return ""
    kwh = energy.kwh
    emitted = footprint(kwh, run.table("energy")) if kwh is not None else None
    gpu = energy.gpu is not None
    heads = (
        "", f"Training time ({'GPU hours' if gpu else 'hours, no GPU'})", "Training power (W)",
        "Location-based emissions (tons CO2eq)", "Market-based emissions (tons CO2eq)",
    )  # fmt: skip
    row = (
        plain(name),
        short((energy.gpu.seconds if energy.gpu is not None else energy.seconds) / 3600),
        short(kwh * JOULES_PER_KWH / energy.seconds) if kwh is not None else UNKNOWN,
        short(emitted.location_grams / GRAMS_PER_TONNE) if emitted is not None else UNKNOWN,
        short(emitted.market_grams / GRAMS_PER_TONNE) if emitted is not None else UNKNOWN,
    )
    told = " ".join([_energy(energy, run), _place(emitted, kwh)])
    return f"## Training energy\n\n{table(heads, [row])}\n\n{told}"


def _energy(energy: Energy, run: RunFacts) -> str:
    kwh = energy.kwh
    started = "" if energy.sessions == 1 else f", over {energy.sessions} starts, work that a stop undid included"
    parts = [("the processor", energy.cpu), *([("the GPU", energy.gpu)] if energy.gpu is not None else [])]
    whole = f"{short(kwh)} kWh" if kwh is not None else f"Energy {UNKNOWN}"
    told = f"{whole} in {duration(energy.seconds)} on {plain(energy.device)}{started}: "
    told += "; ".join(_part(name, part, run) for name, part in parts) + "."
    return told + " Memory, disks, fans and the preparation of data are not in it."


def _part(name: str, part: Part, run: RunFacts) -> str:
    if part.joules is None:
        return f"{name} {UNKNOWN} (no counter, and no watts in the table: `energy.gpu_watts` in the recipe tells them)"
    how = " and ".join(HOW.get(word, "known otherwise") for word in part.how)
    if ESTIMATE in part.how:
        watts = run.table("energy").get("gpu_watts")
        basis = f"{CPU_CORE_WATTS:g} W a busy core" if name == "the processor" else "its highest power all the time"
        how += f" ({basis if watts is None or name == 'the processor' else f'{float(watts):g} W, as the recipe says'})"
    return f"{name} {short(part.joules / JOULES_PER_KWH)} kWh, {how}"


def _place(emitted: Footprint | None, kwh: float | None) -> str:
    if emitted is None:
        return "" if kwh is None else (
            "CO2 is not told, for the recipe does not say where the machine stands: `energy.country` would."
        )  # fmt: skip
    grid = emitted.grid
    share = percent(emitted.renewable_share) if emitted.renewable_share else "none"
    return (
        f"Location-based: times a PUE of {emitted.pue:g} and {grid.grams_per_kwh:g} g CO2eq/kWh, the mean of the grid "
        f"of {plain(grid.country)} in {grid.year} ({SOURCE}). Market-based: {share} of the electricity is said to be "
        "matched by purchases of renewable energy."
    )
