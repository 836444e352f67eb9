"""The demonstration: a small model is met, lacks a skill, learns it, shows it, and lies on the disk as files.

Comes in: a folder and a seed. Goes out: ``DemoResult``, and the story in five acts on a stream. It calls what a user's
own commands call: ``load``, ``finetune`` and ``export``. Only the records are prepared (``assets/demo``).
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from whippet.chat.messages import Conversation, Message
from whippet.export import export
from whippet.infer.model import Model, load
from whippet.report.figures import count, duration, percent, size
from whippet.run import finetune

ASSETS = Path(__file__).parent / "assets"
MODEL, TRAIN, HELD_OUT = ASSETS / "tiny", ASSETS / "demo" / "train.jsonl", ASSETS / "demo" / "heldout.jsonl"
QUESTIONS = (
    "What is 37 + 45?",
    "Sort these numbers: 52, 7, 31",
    "Tom moved to Lima. Anna moved to Oslo. Who moved to Oslo?",
)
WANTED = 0.9
SAMPLES = 3
WIDTH = 78
MAX_NEW_TOKENS = 64
RECIPE: dict[str, dict[str, Any]] = {
    "model": {"base": "nf4"},
    "lora": {"r": 16, "alpha": 32},
    "train": {"learning_rate": 3e-3, "epochs": 4.0, "tokens_per_step": 2048, "schedule": "cosine", "beta2": 0.99},
}
"""The keys of the run's recipe that are not left to their defaults."""


@dataclass(frozen=True)
class Exam:
    """What a model answered to the held-out records."""

    replies: tuple[str, ...]
    wanted: tuple[str, ...]
    seconds: float

    @property
    def right(self) -> int:
        """Replies that are the wanted text to the letter."""
        return sum(map(str.__eq__, self.replies, self.wanted))

    @property
    def share(self) -> float:
        return self.right / len(self.wanted)


@dataclass(frozen=True)
class DemoResult:
    """How the demonstration went."""

    folder: Path
    merged: Path
    questions: tuple[str, ...]
    before: Exam
    after: Exam
    seconds: float
    """In all, loading and both exams included."""

    @property
    def passed(self) -> bool:
        """Whether the skill was learnt."""
        return self.after.share >= WANTED

    @property
    def complaint(self) -> str:
        """What to say if it was not."""
        after = self.after
        return (
            f"the tuned model has {after.right} of {len(after.wanted)} held-out records right, that is "
            f"{percent(after.share)}, wanted at least {percent(WANTED)}; the training is shown in "
            f"{self.folder / 'report.html'}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "folder": str(self.folder),
            "adapter": str(self.folder / "adapter"),
            "merged": str(self.merged),
            "asked": len(self.after.wanted),
            "exact_match_before": self.before.share,
            "exact_match_after": self.after.share,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "samples": [
                {"question": question, "wanted": wanted, "before": before, "after": after}
                for question, wanted, before, after in _samples(self.questions, self.before, self.after)
            ],
        }


def demo(out: Path, *, seed: int = 0, stream: TextIO) -> DemoResult:
    """Tell the story on ``stream`` while it happens; the run's folder is ``out``. Raises what ``finetune`` raises."""
    started = time.monotonic()
    story = Story(stream)
    held_out = read_records(HELD_OUT)
    questions = tuple(messages[-2].content for messages in held_out)
    _meet(story)
    before = _lacks(story, held_out)
    folder = _learns(story, out, seed)
    after = _shows(story, folder, held_out, before)
    merged = _holds(story, folder)
    result = DemoResult(folder, merged, questions, before, after, time.monotonic() - started)
    story.say(f"All of it took {duration(result.seconds)}." if result.passed else f"But {result.complaint}.")
    return result


def _meet(story: Story) -> None:
    story.act("1  A small model")
    model = load(MODEL)
    weights = (MODEL / "model.safetensors").stat().st_size
    story.say(
        f"This model comes with whippet: {count(weights / 2)} parameters, {size(weights)}, an ordinary Llama "
        f"checkpoint ({model.about}). It knows a small world and nothing else."
    )
    for question in QUESTIONS:
        story.pair(question, [("", model.generate([Message("user", question)], max_new_tokens=MAX_NEW_TOKENS))])


def _lacks(story: Story, held_out: Sequence[Sequence[Message]]) -> Exam:
    story.act("2  What it cannot do")
    story.say("A kennel keeps a register, one line a dog. The model has never seen its form.")
    before = sit_exam(load(MODEL, base="nf4"), held_out)
    for messages, reply in zip(held_out[:SAMPLES], before.replies, strict=False):
        story.pair(messages[-2].content, [("wanted", messages[-1].content), ("model", reply)])
    story.score("Before", before)
    return before


def _learns(story: Story, out: Path, seed: int) -> Path:
    story.act("3  It learns")
    lora, train = RECIPE["lora"], RECIPE["train"]
    story.say(
        f"{sum(1 for _ in TRAIN.open(encoding='utf-8'))} lines of the register, none of a dog in the exam. The weights "
        f"are held in 4 bit (NF4) and stay as they are; an adapter of rank {lora['r']} learns beside them, for "
        f"{train['epochs']:g} epochs."
    )
    story.flush()
    recipe: dict[str, Any] = {**RECIPE, "train": {**train, "seed": seed}}
    return finetune(MODEL, TRAIN, out=out, **recipe).folder


def _shows(story: Story, folder: Path, held_out: Sequence[Sequence[Message]], before: Exam) -> Exam:
    story.act("4  What it can do now")
    after = sit_exam(load(folder), held_out)
    questions = [messages[-2].content for messages in held_out]
    for question, wanted, old, new in _samples(questions, before, after):
        story.pair(question, [("before", old), ("after", new), ("", "right" if new == wanted else f"wanted: {wanted}")])
    story.score("Before", before)
    story.score("After", after)
    return after


def _holds(story: Story, folder: Path) -> Path:
    story.act("5  What you hold")
    merged = folder / "hf"
    if not merged.exists():
        export(folder, to="hf", out=merged)
    story.say(f"In {folder}:")
    for name, meaning in FILES:
        story.file(folder / name, name, meaning)
    story.say("Now type:")
    story.command(f"whippet chat {folder}", "talk to it")
    story.command(f"whippet chat {folder} --compare", "beside the model it was")
    story.command("whippet finetune MODEL YOUR_DATA.jsonl", "teach a model of yours")
    return merged


FILES = (
    ("adapter/", "what was learnt, in PEFT's format"),
    ("hf/", "model and adapter in one, for transformers and others"),
    ("loss.png", "the loss curve"),
    ("report.html", "the whole run on one page"),
    ("README.md", "the model card"),
    ("recipe.toml", "every setting of the run"),
)


def sit_exam(model: Model, held_out: Sequence[Sequence[Message]]) -> Exam:
    """Let ``model`` answer all records at once, greedily."""
    started = time.monotonic()
    asked = [Conversation(tuple(messages[:-1])) for messages in held_out]
    replies = model.generate_batch(asked, max_new_tokens=MAX_NEW_TOKENS)
    wanted = tuple(messages[-1].content for messages in held_out)
    return Exam(tuple(replies), wanted, time.monotonic() - started)


def read_records(path: Path) -> list[list[Message]]:
    """The messages of each bundled record."""
    records = (json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines())
    return [[Message(turn["role"], turn["content"]) for turn in turns] for turns in records]


def free_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _samples(questions: Sequence[str], before: Exam, after: Exam) -> Iterator[tuple[str, str, str, str]]:
    """Question, wanted, before and after of the first held-out records."""
    yield from list(zip(questions, after.wanted, before.replies, after.replies, strict=True))[:SAMPLES]


class Story:
    """Tells on a stream, in lines of at most 80 columns (but for paths that are longer)."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def act(self, title: str) -> None:
        self._console.print()
        self._console.print(title, style="bold")
        self._console.print("─" * len(title))

    def say(self, text: str) -> None:
        """A paragraph."""
        for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False):
            self._console.print(line)

    def pair(self, question: str, answers: Sequence[tuple[str, str]]) -> None:
        """A question, and below it answers with their labels."""
        self._console.print()
        for number, line in enumerate(textwrap.wrap(question, WIDTH - 4)):
            self._console.print(("  > " if number == 0 else "    ") + line, style="cyan")
        for label, answer in answers:
            flat = " / ".join(answer.splitlines()) or "(nothing)"
            head = f"    {label:<8}" if any(name for name, _ in answers) else "    "
            line = head + flat
            self._console.print(line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ...")

    def score(self, when: str, exam: Exam) -> None:
        """One line with a bar."""
        bar = "█" * round(20 * exam.share)
        text = f"{when:<8}{exam.right:>3} of {len(exam.wanted)} held-out lines right, to the letter  {bar:░<20}"
        self._console.print()
        self._console.print(text, style="bold green" if exam.share >= WANTED else "bold")

    def file(self, path: Path, name: str, meaning: str) -> None:
        """A file or folder of the run, and how large it is."""
        held = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
        total = size(sum(part.stat().st_size for part in held))
        self._console.print(f"  {name:<13}{total:>9}  {meaning}")

    def command(self, line: str, purpose: str) -> None:
        """What can be typed next."""
        self._console.print(f"  {line}", style="bold")
        self._console.print(f"      {purpose}")

    def flush(self) -> None:
        """Let what was told appear before others write."""
        self._console.file.flush()
