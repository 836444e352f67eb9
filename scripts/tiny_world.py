"""Write short dialogues over a small world: what the embedded model is trained and tested on.

usage: python scripts/tiny_world.py --count N --seed S --out FILE.jsonl            training records
       python scripts/tiny_world.py --held-out N --seed S --out FILE.jsonl         held-out questions, by topic

A training record is ``{"messages": [...], "tools": [...]}``; a held-out one also has its ``topic``, and its last
message is the only right answer. One content in fifty (``world/question.py``) is kept out of all training records. The
same seed writes the same file, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from world.dialogues import TOPICS, dialogue, held_out

CHUNK = 500


def training_line(seed: int, number: int) -> str:
    """The training record ``number`` of a seed, as a line of JSON."""
    return json.dumps(dialogue(Random(f"train:{seed}:{number}"))) + "\n"


def held_out_records(count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` held-out records, the topics in turn, no question twice."""
    found: dict[str, dict[str, Any]] = {}
    number = 0
    while len(found) < count:
        record = held_out(Random(f"held out:{seed}:{number}"), TOPICS[len(found) % len(TOPICS)])
        number += 1
        asked = [message["content"] for message in record["messages"] if message["role"] == "user"][-1]
        found.setdefault(asked, record)
    return list(found.values())


def training_lines(count: int, seed: int, processes: int = 0) -> Iterator[str]:
    """``count`` lines, made by ``processes`` (0: one a core)."""
    make = functools.partial(training_line, seed)
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        yield from pool.imap(make, range(count), chunksize=CHUNK)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=0, help="training records")
    parser.add_argument("--held-out", type=int, default=0, help="held-out records instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if (args.count > 0) == (args.held_out > 0):
        parser.error("give either --count or --held-out, above 0")
    with args.out.open("w", encoding="utf-8") as out:
        if args.count:
            out.writelines(training_lines(args.count, args.seed))
        else:
            out.writelines(json.dumps(record) + "\n" for record in held_out_records(args.held_out, args.seed))


if __name__ == "__main__":
    main()
