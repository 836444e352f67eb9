"""Exact match of a model on held-out questions of the small world, by topic.

usage: python scripts/tiny_score.py MODEL HELD_OUT.jsonl [--base nf4] [--wrong]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from whippet.chat.messages import Message
from whippet.infer.model import Model, load
from whippet.infer.prompts import conversation

BATCH = 100
MAX_NEW_TOKENS = 160


def replies(model: Model, records: list[dict[str, Any]]) -> list[tuple[Message, Message]]:
    """For each record what the model answers, and what is right."""
    pairs: list[tuple[Message, Message]] = []
    for start in range(0, len(records), BATCH):
        chunk = [conversation(record["messages"], record.get("tools")) for record in records[start : start + BATCH]]
        asked = [type(one)(one.messages[:-1], one.tools) for one in chunk]
        texts = model.generate_batch(asked, max_new_tokens=MAX_NEW_TOKENS)
        pairs += [(model.renderer.parse(text), one.messages[-1]) for text, one in zip(texts, chunk, strict=True)]
    return pairs


def is_right(reply: Message, wanted: Message) -> bool:
    """The same text to the letter, or the same calls."""
    calls = [[(call.name, call.arguments) for call in message.tool_calls] for message in (reply, wanted)]
    return reply.content == wanted.content and calls[0] == calls[1]


def score(folder: Path, records: list[dict[str, Any]], *, base: str = "auto", device: str = "auto") -> dict[str, Any]:
    """Exact match in all and by topic."""
    return count(replies(load(folder, base=base, device=device), records), records)  # type: ignore[arg-type]


def count(pairs: list[tuple[Message, Message]], records: list[dict[str, Any]]) -> dict[str, Any]:
    asked, right = Counter[str](), Counter[str]()
    for (reply, wanted), record in zip(pairs, records, strict=True):
        asked[record["topic"]] += 1
        right[record["topic"]] += is_right(reply, wanted)
    by_topic = {topic: {"asked": asked[topic], "right": right[topic]} for topic in asked}
    return {"asked": asked.total(), "exact_match": right.total() / asked.total(), "by_topic": by_topic}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--base", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--wrong", action="store_true", help="also print every wrong answer")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.held_out.read_text(encoding="utf-8").splitlines()]
    pairs = replies(load(args.model, base=args.base, device=args.device), records)
    for (reply, wanted), record in zip(pairs, records, strict=True):
        if args.wrong and not is_right(reply, wanted):
            print(f"{record['topic']}: {record['messages'][-2]['content']!r}\n  is     {reply.content!r} "
                  f"{reply.tool_calls}\n  wanted {wanted.content!r} {wanted.tool_calls}")  # fmt: skip
    print(json.dumps(count(pairs, records), indent=2))


if __name__ == "__main__":
    main()
