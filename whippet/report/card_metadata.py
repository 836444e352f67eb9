"""The card's YAML: what the Hugging Face hub reads, only what is known.

Comes in: ``CardFacts``. Goes out: the front matter, every text as a JSON string, which YAML reads alike.
Keys: https://huggingface.co/docs/hub/model-cards and /model-cards-co2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from whippet.report.card_facts import CardFacts, sources
from whippet.report.card_usage import is_gguf
from whippet.report.emissions import Energy, footprint, total
from whippet.report.folder import is_hub_id
from whippet.report.grid import SOURCE
from whippet.report.licences import duties_of


def metadata(facts: CardFacts) -> str:
    """The card's first lines, between rules."""
    method = str(facts.run.table("train").get("method", "")) if facts.run is not None else ""
    entries: dict[str, Any] = {}
    if is_hub_id(facts.base):
        entries |= {"base_model": facts.base, "base_model_relation": facts.relation}
    whole = "gguf" if is_gguf(facts) else "transformers"
    entries["library_name"] = "peft" if facts.relation == "adapter" else whole
    entries["pipeline_tag"] = "text-generation"
    entries |= _licence(facts)
    entries["language"] = list(facts.languages)
    entries["tags"] = ["whippet", *([method] if method else []), *(["conversational"] if facts.chat else [])]
    paths = [str(source["path"]) for source in sources(facts.run)]
    entries["datasets"] = [path for path in paths if is_hub_id(path)]
    entries["co2_eq_emissions"] = _emissions(facts)
    return "\n".join(["---", *(line for key, value in entries.items() for line in _lines(key, value)), "---"])


def _licence(facts: CardFacts) -> dict[str, str]:
    licence, duties = facts.license, duties_of(facts.license)
    if licence is None:
        return {}
    name, link = licence.name, licence.link
    if duties is not None:
        name, link = name or licence.id, link or duties.link
    told = {"license": licence.id, "license_name": name, "license_link": link}
    return {key: value for key, value in told.items() if value is not None}


def _emissions(facts: CardFacts) -> dict[str, Any]:
    """Grams by the grid that the power came from; empty without a country or without a figure for the energy."""
    energy = total(facts.run.energy) if facts.run is not None else None
    if facts.run is None or energy is None or energy.kwh is None:
        return {}
    emitted = footprint(energy.kwh, facts.run.table("energy"))
    if emitted is None:
        return {}
    return {
        "emissions": emitted.location_grams,
        "source": f"whippet: {_known_by(energy)}, times PUE and grid of {emitted.grid.year} ({SOURCE})",
        "training_type": "fine-tuning",
        "geographical_location": emitted.grid.country,
        "hardware_used": energy.device,
    }


def _known_by(energy: Energy) -> str:
    return "energy read from hardware counters" if energy.how == ("counter",) else "energy in part or whole estimated"


def _lines(key: str, value: Any) -> list[str]:
    if value in ({}, []):
        return []
    if isinstance(value, Mapping):
        return [f"{key}:", *(f"  {name}: {_scalar(item)}" for name, item in value.items())]
    if isinstance(value, list):
        return [f"{key}:", *(f"- {_scalar(item)}" for item in value)]
    return [f"{key}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    """A number with four digits and no exponent: ``1e-05`` is text to YAML 1.1."""
    return format(Decimal(f"{value:.4g}"), "f") if isinstance(value, float) else json.dumps(value)
