"""The model card: ``README.md`` with the metadata that the Hugging Face hub reads.

Comes in: ``CardFacts``. Goes out: markdown. It tells what a reader needs and nothing of the machine: files by their
names, no paths, no environment. What comes from outside is escaped, so that no name can break a table or the metadata.
"""

from __future__ import annotations

from whippet.report.card_energy import energy_section
from whippet.report.card_facts import CardFacts as CardFacts
from whippet.report.card_metadata import metadata
from whippet.report.card_sections import (
    cost_section,
    data_section,
    recipe_section,
    results_section,
    samples_section,
    verification_section,
    versions_section,
)
from whippet.report.card_text import plain
from whippet.report.card_usage import is_gguf, usage
from whippet.report.folder import public_name
from whippet.report.licences import NOTICE, duties_of, public_title
from whippet.report.licences import license_of as license_of
from whippet.report.results import Results, results


def model_card(facts: CardFacts) -> str:
    """The whole card."""
    run = facts.run
    told = results(run.records) if run is not None else None
    title = public_title(facts.name, facts.license)
    sections = [
        metadata(facts),
        f"# {plain(title)}\n\n{_introduction(facts, told)}",
        _intended(facts),
        usage(facts),
        data_section(run) if run is not None else "",
        recipe_section(run) if run is not None else "",
        results_section(told, facts.curve) if told is not None else "",
        samples_section(run) if run is not None else "",
        cost_section(run, told) if run is not None and told is not None else "",
        energy_section(run, title) if run is not None else "",
        verification_section(facts.export) if facts.export is not None else "",
        versions_section(run.environment) if run is not None and run.environment else "",
        _limitations(),
        _licence(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(facts: CardFacts, told: Results | None) -> str:
    base = f"`{plain(public_name(facts.base))}`"
    duties = duties_of(facts.license)
    display = f"**{duties.display}**\n\n" if duties is not None and duties.display else ""
    if facts.run is None:
        form = "a GGUF file" if is_gguf(facts) else "a checkpoint"
        return f"{display}{base} as {form}, written anew with whippet."
    method = facts.run.table("train").get("method")
    held = facts.run.table("model").get("base")
    how = "all weights trained" if method == "full" else f"LoRA over {'4-bit (nf4)' if held == 'nf4' else held} weights"
    what = f"An adapter for {base}" if facts.relation == "adapter" else f"A whole model, made from {base}"
    names = ", ".join(f"`{plain(public_name(str(source['path'])))}`" for source in facts.run.sources)
    text = f"{display}{what}, fine-tuned on {names or 'a private data set'} ({how}) with whippet."
    if told is not None and told.eval_last is not None:
        text += f" The loss on held-out records is **{told.eval_last:.4f}**"
        text += f", from {told.eval_first:.4f} before training." if told.eval_before else "."
    return text


def _intended(facts: CardFacts) -> str:
    """What nobody but its maker can say is left for the maker to say."""
    known = (
        "It answers in the form of the records that it was tuned on, and has been tried on no other use than the "
        "figures below show."
        if facts.run is not None
        else "Nothing is known here beyond what the card of its base says."
    )
    return (
        "## Intended use\n\nNot stated yet. Before you share this model, write here what it is for, for whom, and what "
        f"it must not be used for. {known}"
    )


def _limitations() -> str:
    return (
        "## Limitations\n\nThe model has the limits of its base and of the data that it was tuned on: it can be wrong, "
        "sound certain while it is, and repeat what is harmful in either. Loss on held-out records of the same kind "
        "says little about other uses; test it on yours."
    )


def _licence(facts: CardFacts) -> str:
    licence, duties = facts.license, duties_of(facts.license)
    if licence is None:
        text = "That of the base applies; it was not found beside the weights, so look it up before sharing."
        return f"## Licence\n\n{text}"
    if duties is None:
        named = f" ({plain(licence.name)})" if licence.name else ""
        where = f": <{licence.link}>" if licence.link else ""
        return f"## Licence\n\nThat of the base: `{plain(licence.id)}`{named}{where}."
    parts = [f"That of the base, the [{duties.name}]({duties.link})"]
    parts += [f"its [rules of use]({duties.policy}) go with it"] if duties.policy else []
    parts += [f"a copy of it, and the file `{NOTICE}`, must lie beside the weights wherever they are shared"]
    parts += [f'"{duties.display}" must be shown where the model is'] if duties.display else []
    renamed = public_title(facts.name, licence) != facts.name
    parts += [
        f'the name of the model must begin with "{duties.prefix}"' + (", as it does here" if renamed else "")
    ] if duties.prefix else []  # fmt: skip
    return f"## Licence\n\n{'; '.join(parts)}."
