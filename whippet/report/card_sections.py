"""The card's sections that are read off a run: data, recipe, results, answers, cost, verification, versions.

Comes in: ``RunFacts`` and what was made of its records. Goes out: markdown, empty where there is nothing to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whippet.report.card_facts import sources
from whippet.report.card_text import figure, line, plain, shown, table
from whippet.report.figures import count, duration, percent, short, size
from whippet.report.folder import RunFacts, public_name
from whippet.report.results import Results

SHOWN_KEYS = {
    "model": ("base", "compute", "add_tokens"),
    "lora": ("r", "alpha", "dropout", "targets", "rslora"),
    "data": ("format", "template", "template_variables", "train_on", "max_length", "packing", "eval_fraction"),
    "train": (
        "objective", "method", "max_steps", "epochs", "learning_rate", "schedule", "warmup", "tokens_per_step",
        "optimizer", "weight_decay", "clip", "seed",
    ),
}  # fmt: skip
"""The keys of the recipe that shape the model; the others say where things lie."""
MOST_SAMPLES = 3


def data_section(run: RunFacts) -> str:
    """Where the records came from, and the report on them."""
    rows = [
        (
            plain(public_name(str(source["path"]))),
            short(float(source.get("weight", 1))),
            str(source.get("sha256", ""))[:16],
        )
        for source in sources(run)
    ]
    known = any(seal for *_, seal in rows)
    heads = ("source", "weight", "sha256 (first 16)") if known else ("source", "weight")
    parts = [table(heads, (row[: len(heads)] for row in rows))] if rows else []
    figures = [(key.replace("_", " "), figure(value)) for key, value in (run.data or {}).items() if _is_figure(value)]
    parts += [table(("", ""), figures)] if figures else []
    return "\n\n".join(["## Training data", *parts]) if parts else ""


def recipe_section(run: RunFacts) -> str:
    """The keys that shape the model."""
    full = run.table("train").get("method") == "full"
    rows = []
    for name, keys in SHOWN_KEYS.items():
        held = run.table(name) if not (full and name == "lora") else {}
        rows += [(f"{name}.{key}", shown(held[key])) for key in keys if held.get(key) not in (None, {}, [])]
    return f"## Recipe\n\n{table(('key', 'value'), rows)}"


def results_section(told: Results, curve: str | None) -> str:
    """First and last losses, and the picture called ``curve``."""
    rows = [("training loss", told.loss_first, told.loss_last)]
    rows += [("held-out loss", told.eval_first, told.eval_last)] if told.eval_last is not None else []
    rows += (
        [("held-out accuracy", told.eval_accuracy_first, told.eval_accuracy_last)] if told.eval_accuracy_last else []
    )
    losses = table(("", "first", "last"), ((name, short(first), short(last)) for name, first, last in rows))
    note = f"After {told.steps:,} steps over {count(told.tokens)} tokens. Losses are nats per trained token."
    picture = f"\n\n![The loss over the steps]({curve})" if curve else ""
    return f"## Evaluation\n\n{losses}\n\n{note}{picture}"


def samples_section(run: RunFacts) -> str:
    """The last sample answers."""
    if not run.samples:
        return ""
    last = [sample for sample in run.samples if sample.get("step") == run.samples[-1].get("step")][:MOST_SAMPLES]
    answers = [f"**{line(sample.get('prompt', ''))}**\n\n> {line(sample.get('text', ''))}" for sample in last]
    return "\n\n".join(["## Sample answers", "Of the finished model, not chosen by hand.", *answers])


def cost_section(run: RunFacts, told: Results) -> str:
    """Memory and speed."""
    environment = run.environment or {}
    rows = [
        ("device", plain(str(environment.get("device", "")))),
        ("peak device memory", size(told.peak_bytes)),
        ("tokens per second", count(told.tokens_per_s)),
        ("time in steps", duration(told.seconds)),
    ]
    known = [(name, value) for name, value in rows if value not in ("", "–")]
    return f"## Memory and speed\n\n{table(('', ''), known)}" if known else ""


def verification_section(export: Mapping[str, Any]) -> str:
    """What reading an export back showed."""
    names = {
        "dtype": "written as", "merged_onto": "adapter merged onto", "parameters": "parameters",
        "mean_kl": "mean KL to the live model, nats", "bound_mean_kl": "bound on it",
        "max_difference": "largest difference of logits", "greedy_agreement": "same likeliest token",
        "positions": "positions compared", "bases_distance": "trained base to 16-bit base, relative",
    }  # fmt: skip
    rows = [(name, _exported(key, export[key])) for key, name in names.items() if export.get(key) is not None]
    verdict = "within its bound" if export.get("passed") else "**beyond its bound: do not rely on it**"
    text = f"The files were read back and compared with the model that was trained: {verdict} (`verify.json`)."
    return f"## Verification\n\n{text}\n\n{table(('', ''), rows)}"


def versions_section(environment: Mapping[str, Any]) -> str:
    """What it was made with."""
    rows = [(plain(str(key)), plain(str(value))) for key, value in environment.items() if _is_version(key, value)]
    return f"## Versions\n\n{table(('', ''), rows)}" if rows else ""


def _exported(key: str, value: Any) -> str:
    if key in ("greedy_agreement", "bases_distance"):
        return percent(float(value))
    return count(value) if key in ("parameters", "positions") else shown(value)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float | str) and not (isinstance(value, str) and ("/" in value or "\\" in value))


def _is_version(key: Any, value: Any) -> bool:
    return isinstance(value, str) and key != "device" and "/" not in value and "\\" not in value
