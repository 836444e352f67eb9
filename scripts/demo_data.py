"""Write the data of ``whippet demo``: sentences about dogs, and the line that a kennel's register has for each.

usage: python scripts/demo_data.py [--seed S] [--out whippet/assets/demo]

The register's form occurs nowhere in the small world (``tiny_world.py``), so the embedded model cannot know it. The
dogs of the held-out records have names that no training record has.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

from world.words import BREEDS, NAMES, in_words, made_up

TRAIN, HELD_OUT = 600, 100
MEALS = ("once", "twice", "three times", "four times")
SENTENCES = (
    "{n}, a {w}-year-old {b}, weighs {k} kg and eats {m} a day.",
    "{n} is a {b}, {w} years old, weighs {k} kg and eats {m} a day.",
    "{n} is a {b} of {k} kg. The dog is {w} years old and eats {m} a day.",
    "The {b} {n} eats {m} a day, weighs {k} kg and is {w} years old.",
    "{n} weighs {k} kg, is a {b}, eats {m} a day and is {w} years old.",
)
README = """# The data of `whippet demo`

`train.jsonl` ({train} records) and `heldout.jsonl` ({held_out} records), in the `messages` form: a sentence about a
dog, and the line that a kennel's register has for it. Written by

    python scripts/demo_data.py --seed {seed}

No dog of the held-out records has a name that occurs in the training records. The form of the register's line occurs
nowhere in the text that the embedded model was trained on. All names and dogs are invented. Licence: Apache-2.0.
"""


def record(draw: Random, name: str) -> dict[str, Any]:
    """One dog: the sentence, and its line in the register."""
    breed, age, weight, meals = draw.choice(BREEDS), draw.randint(2, 15), draw.randint(3, 60), draw.randint(1, 4)
    sentence = draw.choice(SENTENCES).format(n=name, b=breed, w=in_words(age), k=weight, m=MEALS[meals - 1])
    line = f"{name}, {breed}, {age} y, {weight} kg, {meals}x"
    return {
        "messages": [
            {"role": "user", "content": f"Kennel register: {sentence}"},
            {"role": "assistant", "content": line},
        ]
    }


def records(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out records; the same seed gives the same ones."""
    draw = Random(f"kennel:{seed}")
    names = draw.sample(NAMES, len(NAMES))
    names += [made_up(draw).capitalize() for _ in range(len(NAMES) // 2)]
    names = list(dict.fromkeys(names))
    draw.shuffle(names)
    border = len(names) // 4
    held_out, train = names[:border], names[border:]
    made = [_distinct(draw, train, TRAIN), _distinct(draw, held_out, HELD_OUT)]
    return made[0], made[1]


def _distinct(draw: Random, names: list[str], count: int) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        one = record(draw, draw.choice(names))
        found[one["messages"][0]["content"]] = one
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "whippet" / "assets" / "demo")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, held_out = records(args.seed)
    for name, made in (("train", train), ("heldout", held_out)):
        lines = "".join(json.dumps(one) + "\n" for one in made)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    text = README.format(seed=args.seed, train=len(train), held_out=len(held_out))
    (args.out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
