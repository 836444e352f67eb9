"""What a base's licence asks of a model that is made from it: found beside the weights, told on the card.

Comes in: a checkpoint's folder. Goes out: ``Licence``, and its files copied to what is shared. The table holds what the
agreements of Meta and Google say must be done; it is no legal advice, and the licence itself is what counts.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whippet.errors import UsageError
from whippet.paths import within

FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\n---", re.DOTALL)
WORD = re.compile(r"[\w.+-]{1,60}", re.ASCII)
NAME = re.compile(r"[\w.+ -]{1,80}", re.ASCII)
LINK = re.compile(r"https://[\w./%~#?=&+-]{1,200}", re.ASCII)
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?|multilingual|code", re.ASCII)
META = re.compile(r"meta-llama/(?:Meta-)?Llama-(2|3|3\.1|3\.2|3\.3|4)-.*", re.ASCII)
MOST_CARD = 64_000
MOST_FILE = 1 << 20
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "USE_POLICY.md")
NOTICE = "NOTICE"


@dataclass(frozen=True)
class Licence:
    """A licence, as the hub's metadata names it."""

    id: str
    """The hub's spelling, ``other`` with a name and a link."""
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Duties:
    """What a licence asks of who shares a model made from its own."""

    name: str
    link: str
    policy: str | None = None
    """Rules of use that go with it."""
    display: str | None = None
    """Words to show where the model is shown."""
    prefix: str | None = None
    """What the model's name must begin with."""
    notice: str | None = None
    """Words of a file ``NOTICE`` beside the weights."""


def _llama(version: str, agreement: str, where: str, display: str | None, prefix: str | None) -> Duties:
    what = f"Meta Llama {version}" if version == "3" else f"Llama {version}"
    return Duties(
        name=f"{what} Community License",
        link=f"{where}/license",
        policy=f"{where}/use-policy",
        display=display,
        prefix=prefix,
        notice=f"{what} is licensed under the {agreement} Community License, "
        f"Copyright {'(c)' if version == '2' else '©'} Meta Platforms, Inc. All Rights Reserved.",
    )


DUTIES = {
    "llama2": _llama("2", "LLAMA 2", "https://ai.meta.com/llama", None, None),
    "llama3": _llama("3", "Meta Llama 3", "https://llama.meta.com/llama3", "Built with Meta Llama 3", "Llama-3"),
    "llama3.1": _llama("3.1", "Llama 3.1", "https://www.llama.com/llama3_1", "Built with Llama", "Llama"),
    "llama3.2": _llama("3.2", "Llama 3.2", "https://www.llama.com/llama3_2", "Built with Llama", "Llama"),
    "llama3.3": _llama("3.3", "Llama 3.3", "https://www.llama.com/llama3_3", "Built with Llama", "Llama"),
    "llama4": _llama("4", "Llama 4", "https://www.llama.com/llama4", "Built with Llama", "Llama"),
    "gemma": Duties(
        name="Gemma Terms of Use",
        link="https://ai.google.dev/gemma/terms",
        policy="https://ai.google.dev/gemma/prohibited_use_policy",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
}
"""By the hub's name of the licence: section 1.b of each Llama agreement, section 3.1 of Gemma's terms."""


def license_of(folder: Path, base: str = "") -> Licence | None:
    """The licence that a checkpoint's own card names, else that of Meta's hub id ``base``; None if neither tells."""
    front = _front_matter(folder)
    if found := _scalar(front, "license", WORD):
        link = _scalar(front, "license_link", LINK)
        return Licence(found, _scalar(front, "license_name", NAME), link)
    meta = META.fullmatch(base)
    return Licence(f"llama{meta.group(1)}") if meta else None


def languages_of(folder: Path) -> tuple[str, ...]:
    """The languages that a checkpoint's own card names."""
    front = _front_matter(folder)
    one = _scalar(front, "language", LANGUAGE)
    return (one,) if one else _listed(front, "language", LANGUAGE)


def duties_of(licence: Licence | None) -> Duties | None:
    """What the licence asks for, if it is of the table."""
    return DUTIES.get(licence.id) if licence is not None else None


def public_title(name: str, licence: Licence | None) -> str:
    """The name under which the licence lets a model be shared: ``Llama-x`` for ``x``."""
    duties = duties_of(licence)
    if duties is None or duties.prefix is None:
        return name
    begins = name.replace(" ", "-").casefold().startswith(duties.prefix.casefold())
    return name if begins else f"{duties.prefix}-{name}"


def carry_licence(base_folder: Path, licence: Licence | None, folder: Path) -> None:
    """Copy the base's licence files into ``folder`` and write the notice that goes with it. What is there stays.

    A link that leads out of the base's folder is not followed, and no reason to end here: the training is done.
    """
    for name in FILES:
        copy = folder / name
        with contextlib.suppress(UsageError):
            source = within(base_folder, base_folder / name)
            if source.is_file() and source.stat().st_size <= MOST_FILE and not copy.exists():
                shutil.copyfile(source, copy)
    duties = duties_of(licence)
    if duties is not None and duties.notice is not None and not (folder / NOTICE).exists():
        (folder / NOTICE).write_text(duties.notice + "\n", encoding="utf-8")


def _front_matter(folder: Path) -> str:
    path = within(folder, folder / "README.md")
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        found = FRONT_MATTER.search(file.read(MOST_CARD))
    return found.group(1) if found else ""


def _scalar(front: str, key: str, pattern: re.Pattern[str]) -> str | None:
    """The value of a line ``key: value``; None if there is none of that pattern."""
    found = re.search(rf"^{key}:[ \t]*[\"']?([^\"'\n]*?)[\"']?[ \t\r]*$", front, re.MULTILINE)
    return found.group(1) if found and pattern.fullmatch(found.group(1)) else None


def _listed(front: str, key: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    """The items ``- value`` under a line ``key:``, or those of ``key: [a, b]``."""
    block = re.search(rf"^{key}:[ \t\r]*\n((?:[ \t]*-[^\n]*(?:\n|\Z))+)", front, re.MULTILINE)
    flow = re.search(rf"^{key}:[ \t]*\[([^\]\n]*)\]", front, re.MULTILINE)
    items: Sequence[str] = block.group(1).splitlines() if block else flow.group(1).split(",") if flow else ()
    words = [item.strip().removeprefix("-").strip().strip("\"'") for item in items]
    return tuple(word for word in words if pattern.fullmatch(word))
