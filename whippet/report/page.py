"""``report.html``: a whole run on one page that opens anywhere, loads nothing and asks nobody.

Comes in: ``RunFacts``. Goes out: one HTML file: headline figures, charts that can be read under the pointer, sample
answers as they changed, data, plan, recipe, versions, links to the run's files. Every text from a record is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from whippet.report.charts import Line, chart
from whippet.report.emissions import COUNTER, Energy, total
from whippet.report.figures import count, duration, percent, short, size
from whippet.report.folder import RunFacts, public_name
from whippet.report.page_parts import POLICY, SCRIPT, STYLE
from whippet.report.results import Results, results
from whippet.report.series import series

MOST_PROMPTS = 12
MOST_ANSWERS = 6
MOST_ITEMS = 12
"""Of a list in the data report; the file itself holds them all."""


def write_page(run: RunFacts, path: Path) -> None:
    """Write the page of ``run`` to ``path``, whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(run_page(run), encoding="utf-8")
    aside.replace(path)


def run_page(run: RunFacts) -> str:
    """The page as text."""
    told = results(run.records)
    body = "".join(
        [
            _header(run),
            _figures(told, total(run.energy)),
            _charts(run, told),
            _samples(run.samples),
            _halves(_section("Data", _rows(run.data)), _section("Plan", _rows(run.plan))),
            _recipe(run),
            _section("Versions", _rows(run.environment)),
            _files(run),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(run.name)} · whippet</title><style>{STYLE}</style></head>\n"
        f"<body><main>{body}<footer>Made by whippet from the files of this folder.</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _header(run: RunFacts) -> str:
    model, train = run.table("model"), run.table("train")
    base = public_name(str(model.get("path", ""))) or "a model"
    names = ", ".join(public_name(str(source.get("path", ""))) for source in run.sources) or "data"
    how = {"full": "all weights", "lora": f"LoRA over {model.get('base', '')}"}.get(str(train.get("method")), "")
    told = " · ".join(part for part in (f"{base}, taught {names}", how) if part)
    return f"<header><h1>{escape(run.name)}</h1><p>{escape(told)}</p></header>"


def _figures(told: Results, energy: Energy | None) -> str:
    figures = [
        ("Loss", _figure(told.loss_last), _from(told.loss_first)),
        ("Held-out loss", _figure(told.eval_last), _from(told.eval_first)),
        ("Held-out accuracy", percent(told.eval_accuracy_last), _from_share(told.eval_accuracy_first)),
        ("Steps", f"{told.steps:,}", ""),
        ("Tokens", count(told.tokens), ""),
        ("Tokens a second", count(told.tokens_per_s), "median"),
        ("Peak memory", size(told.peak_bytes), ""),
        ("Time", duration(told.seconds), "in steps"),
        ("Energy", _energy(energy), "" if energy is None or energy.how == (COUNTER,) else "estimated in part"),
    ]
    shown = [
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for name, value, note in figures
        if value != "–"
    ]
    return f'<dl class="figures">{"".join(shown)}</dl>'


def _charts(run: RunFacts, told: Results) -> str:
    def line(name: str, key: str, style: str, *, smooth: bool = False, marks: bool = False) -> Line:
        return Line(name, series(run.records, key), style, smooth=smooth, marks=marks)

    last = float(max(1, told.steps))
    loss = [line("training", "loss", "main", smooth=True), line("held out", "eval_loss", "eval", marks=True)]
    accuracy = [
        line("training", "accuracy", "main", smooth=True),
        line("held out", "eval_accuracy", "eval", marks=True),
    ]
    drawn = [
        chart("Loss", loss, last_step=last, tall=True),
        chart("Learning rate", [line("now", "learning_rate", "rate")], last_step=last, from_zero=True),
        chart("Gradient norm", [line("now", "grad_norm", "third", smooth=True)], last_step=last),
        chart("Tokens a second", [line("now", "time.tokens_per_s", "main")], last_step=last, from_zero=True),
        chart("Accuracy of the next token", accuracy, last_step=last),
    ]
    return f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else '<p class="quiet">No step yet.</p>'


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Each prompt with its answers over the steps: the first one and the latest."""
    by_prompt: dict[str, list[tuple[Any, str]]] = {}
    for sample in samples:
        by_prompt.setdefault(str(sample.get("prompt", "")), []).append(
            (sample.get("step"), str(sample.get("text", "")))
        )
    shown = []
    for prompt, answers in list(by_prompt.items())[:MOST_PROMPTS]:
        kept = answers if len(answers) <= MOST_ANSWERS else [answers[0], *answers[1 - MOST_ANSWERS :]]
        steps = "".join(f"<dt>step {escape(str(step))}</dt><dd>{escape(text)}</dd>" for step, text in kept)
        shown.append(f'<div class="sample"><p>{escape(prompt)}</p><dl>{steps}</dl></div>')
    return f"<section><h2>Sample answers</h2>{''.join(shown)}</section>" if shown else ""


def _recipe(run: RunFacts) -> str:
    rows = _rows(run.recipe)
    return f'<details><summary>Recipe</summary><div class="card">{_table(rows)}</div></details>' if rows else ""


def _files(run: RunFacts) -> str:
    links = "".join(f'<li><a href="{escape(name, quote=True)}">{escape(name)}</a></li>' for name in run.files)
    return f'<section><h2>Files</h2><ul class="files">{links}</ul></section>' if links else ""


def _halves(*sections: str) -> str:
    shown = [section for section in sections if section]
    return f'<div class="halves">{"".join(shown)}</div>' if len(shown) > 1 else "".join(shown)


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return f'<section><h2>{title}</h2><div class="card">{_table(rows)}</div></section>' if rows else ""


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows) + "</table>"


def _rows(value: Mapping[str, Any] | None, prefix: str = "") -> list[tuple[str, str]]:
    """A nested object as rows of dotted keys and readable values; empty ones are left out."""
    rows: list[tuple[str, str]] = []
    for key, item in (value or {}).items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(item, Mapping):
            rows += _rows(item, f"{prefix}{key}.")
        elif (shown := _shown(item, str(key))) != "":
            rows.append((name.removesuffix(" bytes"), shown))
    return rows


def _shown(value: Any, key: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value, key)
    if isinstance(value, list | tuple):
        parts = [_item(item) for item in value[:MOST_ITEMS]]
        more = [f"and {len(value) - MOST_ITEMS:,} more"] if len(value) > MOST_ITEMS else []
        return (", " if all(" · " not in part for part in parts) else "\n").join([*parts, *more])
    if value is None:
        return ""
    if key == "sha256":
        return str(value)[:16] + "…"
    return public_name(str(value)) if key == "path" else str(value)


def _number(value: float, key: str) -> str:
    """A number in the unit that its key names."""
    for ending, form in (("bytes", size), ("seconds", duration), ("share", percent)):
        if key.endswith(ending):
            return form(value)
    return f"{value:,}" if isinstance(value, int) else short(value)


def _item(item: Any) -> str:
    if not isinstance(item, Mapping):
        return _shown(item)
    parts = [(key, _shown(value, str(key))) for key, value in item.items()]
    return " · ".join(text if key == "path" else f"{key} {text}" for key, text in parts if text)


def _figure(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def _energy(energy: Energy | None) -> str:
    return "–" if energy is None or energy.kwh is None else f"{short(energy.kwh)} kWh"


def _from(first: float | None) -> str:
    return "" if first is None else f"from {first:.4f}"


def _from_share(first: float | None) -> str:
    return "" if first is None else f"from {percent(first)}"
