"""What a model card is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from whippet.report.folder import RunFacts, public_name
from whippet.report.licences import Licence

Relation = Literal["adapter", "finetune", "quantized", "merge"]


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells. What is None or empty is left out."""

    name: str
    """What the model is called: a folder's name."""
    base: str
    """Hub id or folder of the checkpoint that was tuned, as the recipe has it; of a folder only its name is told."""
    relation: Relation
    """``adapter``: the files need the base. ``finetune``: they are a whole model, tuned. ``quantized``: a whole model
    in another precision. ``merge``: one made of several."""
    run: RunFacts | None = None
    """The run that made it; None for a checkpoint that was only written anew."""
    chat: bool = True
    """Whether there is a chat template to talk through."""
    license: Licence | None = None
    """The base's licence; None if it is not known."""
    languages: Sequence[str] = ()
    """As the base's own card names them."""
    export: Mapping[str, Any] | None = None
    """What ``verify.json`` holds, for an export."""
    curve: str | None = None
    """Name of the picture of the loss beside the card."""
    notes: Sequence[str] = ()
    """What other programs will not like about the files."""


def sources(run: RunFacts | None) -> Sequence[Mapping[str, Any]]:
    """The sources of the recipe, with what the data report adds to each (its hash)."""
    if run is None:
        return ()
    told = (run.data or {}).get("sources")
    reported = told if isinstance(told, list) and all(isinstance(one, Mapping) for one in told) else []
    by_name = {public_name(str(one.get("path", ""))): one for one in reported}
    return [{**by_name.get(public_name(str(one["path"])), {}), **one} for one in run.sources]
