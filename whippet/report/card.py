"""The model card: ``README.md`` with the metadata that the Hugging Face hub reads.

Comes in: ``CardFacts``. Goes out: markdown. It tells what a reader needs and nothing of the machine: files by their
names, no paths, no environment. What comes from outside is escaped, so that no name can break a table or the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from whippet.paths import within
from whippet.report.figures import count, duration, percent, short, size
from whippet.report.folder import RunFacts, is_hub_id, public_name
from whippet.report.results import Results, results

Relation = Literal["adapter", "finetune"]
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
LICENCE_LINE = re.compile(r"^license:\s*[\"']?([\w.+-]{1,60})[\"']?\s*$", re.MULTILINE | re.ASCII)
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


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from."""

    name: str
    """What the model is called: a folder's name."""
    base: str
    """Hub id or folder of the checkpoint that was tuned, as the recipe has it; of a folder only its name is told."""
    relation: Relation
    """``adapter``: the files need the base. ``finetune``: they are a whole model."""
    run: RunFacts | None = None
    """The run that made it; None for a checkpoint that was only written anew."""
    chat: bool = True
    """Whether there is a chat template to talk through."""
    license: str | None = None
    """The base's licence, in the hub's spelling; None if it is not known."""
    export: Mapping[str, Any] | None = None
    """What ``verify.json`` holds, for an export."""
    curve: str | None = None
    """Name of the picture of the loss beside the card."""
    notes: Sequence[str] = ()
    """What other programs will not like about the files."""


def model_card(facts: CardFacts) -> str:
    """The whole card."""
    told = results(facts.run.records) if facts.run is not None else None
    sections = [
        _metadata(facts),
        f"# {_plain(facts.name)}\n\n{_introduction(facts, told)}",
        _usage(facts),
        _data(facts.run) if facts.run is not None else "",
        _recipe(facts.run) if facts.run is not None else "",
        _results(facts, told) if told is not None else "",
        _samples(facts.run) if facts.run is not None else "",
        _cost(facts.run, told) if facts.run is not None and told is not None else "",
        _verification(facts.export) if facts.export is not None else "",
        _versions(facts.run.environment) if facts.run is not None and facts.run.environment else "",
        _limitations(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def license_of(folder: Path) -> str | None:
    """The licence that a checkpoint's own card names, None if it has no card or names none."""
    path = within(folder, folder / "README.md")
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        front = FRONT_MATTER.search(file.read(64_000))
    found = LICENCE_LINE.search(front.group(1)) if front else None
    return found.group(1) if found else None


def _metadata(facts: CardFacts) -> str:
    """YAML, every text as a JSON string, which YAML reads alike."""
    method = str(facts.run.table("train").get("method", "")) if facts.run is not None else ""
    tags = ["whippet", *([method] if method else []), *(["conversational"] if facts.chat else [])]
    entries: dict[str, Any] = {}
    if is_hub_id(facts.base):
        entries |= {"base_model": facts.base, "base_model_relation": facts.relation}
    entries["library_name"] = "peft" if facts.relation == "adapter" else "transformers"
    entries["pipeline_tag"] = "text-generation"
    if facts.license is not None:
        entries["license"] = facts.license
    datasets = [str(source["path"]) for source in _sources(facts.run) if is_hub_id(str(source["path"]))]
    lists = {"tags": tags, "datasets": datasets}
    lines = [f"{key}: {json.dumps(value)}" for key, value in entries.items()]
    for key, values in lists.items():
        lines += [f"{key}:", *(f"- {json.dumps(value)}" for value in values)] if values else []
    return "\n".join(["---", *lines, "---"])


def _introduction(facts: CardFacts, told: Results | None) -> str:
    base = f"`{_plain(public_name(facts.base))}`"
    if facts.run is None:
        return f"The checkpoint {base}, written anew with whippet."
    method = facts.run.table("train").get("method")
    held = facts.run.table("model").get("base")
    how = "all weights trained" if method == "full" else f"LoRA over {'4-bit (nf4)' if held == 'nf4' else held} weights"
    what = f"An adapter for {base}" if facts.relation == "adapter" else f"A whole model, made from {base}"
    names = ", ".join(f"`{_plain(public_name(str(source['path'])))}`" for source in facts.run.sources)
    text = f"{what}, fine-tuned on {names or 'a private data set'} ({how}) with whippet."
    if told is not None and told.eval_last is not None:
        text += f" The loss on held-out records is **{told.eval_last:.4f}**"
        text += f", from {told.eval_first:.4f} before training." if told.eval_before else "."
    return text


def _usage(facts: CardFacts) -> str:
    ask = "chat" if facts.chat else "generate"
    tail = "" if facts.chat else ' --prompt "Once upon a time"'
    base = facts.base if is_hub_id(facts.base) else "BASE"
    if facts.relation == "adapter":
        where = "" if is_hub_id(facts.base) else f"  # BASE: the folder of {_plain(public_name(facts.base))}"
        shell = f"whippet {ask} {base} --adapter .{tail}{where}"
        load = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
            f'model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")',
            'model = PeftModel.from_pretrained(model, ".")',
        ]
    else:
        shell = f"whippet {ask} .{tail}"
        load = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
        ]
    asked = ['inputs = tokenizer("Once upon a time", return_tensors="pt")']
    if facts.chat:
        asked = [
            'messages = [{"role": "user", "content": "Hello!"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    python = [*load, *asked, "output = model.generate(**inputs, max_new_tokens=200)"]
    python += ['print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))']
    return (
        f"## How to use\n\nIn this folder, with whippet:\n\n```sh\n{shell}\n```\n\nwith transformers:\n\n"
        "```python\n" + "\n".join(python) + "\n```" + "".join(f"\n\n{_plain(note)}." for note in facts.notes)
    )


def _data(run: RunFacts) -> str:
    rows = [
        (
            _plain(public_name(str(source["path"]))),
            short(float(source.get("weight", 1))),
            str(source.get("sha256", ""))[:16],
        )
        for source in _sources(run)
    ]
    known = any(seal for *_, seal in rows)
    heads = ("source", "weight", "sha256 (first 16)") if known else ("source", "weight")
    parts = [_table(heads, (row[: len(heads)] for row in rows))] if rows else []
    figures = [(key.replace("_", " "), _figure(value)) for key, value in (run.data or {}).items() if _is_figure(value)]
    parts += [_table(("", ""), figures)] if figures else []
    return "\n\n".join(["## Training data", *parts]) if parts else ""


def _recipe(run: RunFacts) -> str:
    full = run.table("train").get("method") == "full"
    rows = []
    for table, keys in SHOWN_KEYS.items():
        held = run.table(table) if not (full and table == "lora") else {}
        rows += [(f"{table}.{key}", _value(held[key])) for key in keys if held.get(key) not in (None, {}, [])]
    return f"## Recipe\n\n{_table(('key', 'value'), rows)}"


def _results(facts: CardFacts, told: Results) -> str:
    rows = [("training loss", told.loss_first, told.loss_last)]
    rows += [("held-out loss", told.eval_first, told.eval_last)] if told.eval_last is not None else []
    rows += (
        [("held-out accuracy", told.eval_accuracy_first, told.eval_accuracy_last)] if told.eval_accuracy_last else []
    )
    table = _table(("", "first", "last"), ((name, short(first), short(last)) for name, first, last in rows))
    note = f"After {told.steps:,} steps over {count(told.tokens)} tokens. Losses are nats per trained token."
    curve = f"\n\n![The loss over the steps]({facts.curve})" if facts.curve else ""
    return f"## Results\n\n{table}\n\n{note}{curve}"


def _samples(run: RunFacts) -> str:
    if not run.samples:
        return ""
    last = [sample for sample in run.samples if sample.get("step") == run.samples[-1].get("step")][:MOST_SAMPLES]
    shown = [f"**{_line(sample.get('prompt', ''))}**\n\n> {_line(sample.get('text', ''))}" for sample in last]
    return "\n\n".join(["## Sample answers", "Of the finished model, not chosen by hand.", *shown])


def _cost(run: RunFacts, told: Results) -> str:
    environment = run.environment or {}
    rows = [
        ("device", _plain(str(environment.get("device", "")))),
        ("peak device memory", size(told.peak_bytes)),
        ("tokens per second", count(told.tokens_per_s)),
        ("time in steps", duration(told.seconds)),
    ]
    known = [(name, value) for name, value in rows if value not in ("", "–")]
    return f"## Memory and speed\n\n{_table(('', ''), known)}" if known else ""


def _verification(export: Mapping[str, Any]) -> str:
    names = {
        "dtype": "written as", "merged_onto": "adapter merged onto", "parameters": "parameters",
        "mean_kl": "mean KL to the live model, nats", "bound_mean_kl": "bound on it",
        "max_difference": "largest difference of logits", "greedy_agreement": "same likeliest token",
        "positions": "positions compared", "bases_distance": "trained base to 16-bit base, relative",
    }  # fmt: skip
    rows = [(told, _exported(key, export[key])) for key, told in names.items() if export.get(key) is not None]
    verdict = "within its bound" if export.get("passed") else "**beyond its bound: do not rely on it**"
    text = f"The files were read back and compared with the model that was trained: {verdict} (`verify.json`)."
    return f"## Verification\n\n{text}\n\n{_table(('', ''), rows)}"


def _versions(environment: Mapping[str, Any]) -> str:
    rows = [(_plain(str(key)), _plain(str(value))) for key, value in environment.items() if _is_version(key, value)]
    return f"## Versions\n\n{_table(('', ''), rows)}" if rows else ""


def _limitations(facts: CardFacts) -> str:
    text = (
        "The model has the limits of its base and of the data that it was tuned on: it can be wrong, sound certain "
        "while it is, and repeat what is harmful in either. Loss on held-out records of the same kind says little "
        "about other uses; test it on yours."
    )
    if facts.license is None:
        text += " The licence of the base applies; it was not found beside the weights, so look it up before sharing."
    return f"## Limitations\n\n{text}"


def _sources(run: RunFacts | None) -> Sequence[Mapping[str, Any]]:
    """The sources of the recipe, with what the data report adds to each (its hash)."""
    if run is None:
        return ()
    told = (run.data or {}).get("sources")
    reported = told if isinstance(told, list) and all(isinstance(one, Mapping) for one in told) else []
    by_name = {public_name(str(one.get("path", ""))): one for one in reported}
    return [{**by_name.get(public_name(str(one["path"])), {}), **one} for one in run.sources]


def _exported(key: str, value: Any) -> str:
    if key in ("greedy_agreement", "bases_distance"):
        return percent(float(value))
    return count(value) if key in ("parameters", "positions") else _value(value)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float | str) and not (isinstance(value, str) and ("/" in value or "\\" in value))


def _is_version(key: Any, value: Any) -> bool:
    return isinstance(value, str) and key != "device" and "/" not in value and "\\" not in value


def _figure(value: Any) -> str:
    if isinstance(value, str | bool):
        return _plain(str(value))
    return f"{value:,}" if isinstance(value, int) else short(value)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return _plain(", ".join(str(item) for item in value))
    if isinstance(value, Mapping):
        return _plain(", ".join(f"{name} = {json.dumps(item, ensure_ascii=False)}" for name, item in value.items()))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return _plain(public_name(value) if value else "–")
    return short(float(value)) if isinstance(value, int | float) else _plain(str(value))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(value: Any, most: int = 600) -> str:
    text = " ".join(str(value).split())
    return _plain(text if len(text) <= most else text[: most - 1] + "…")


def _plain(text: str) -> str:
    """Text that markdown shows as it stands: no tags, no links, no pictures, no code."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`*\[\]<>!#|])", r"\\\1", shown).replace("\\|", "|")
