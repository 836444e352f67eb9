"""A whole local run through the command line, in one process: plan, data, training, samples, exports, answers.

usage: python walk.py CHECKPOINT FOLDER EVENTS [CODE]

Every audit event of the network, or of another program that would run beyond the hook's sight, is appended to the file
EVENTS, those of forked children too. CODE is executed before the walk: for tests of the hook.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

NETWORK = ("socket.", "http.client.", "urllib.", "ftplib.", "smtplib.", "poplib.", "imaplib.", "telnetlib.", "nntplib.")
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "webbrowser.open")
ROWS = 4500
"""More records than one process prepares alone, so that a crew is forked."""


def listen(path: str) -> None:
    """Append the events to ``path``. A child of fork keeps the hook and the open file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(NETWORK) or event in PROGRAMS:
            os.write(file, f"{event} {args!r:.200}\n".encode())

    sys.addaudithook(hook)


def walk(checkpoint: str, folder: Path) -> None:
    """Each verb that works on local files; an exit code other than 0 is an error."""
    from helpers_train import write_records

    from whippet.cli.main import main

    def whippet(*words: str | Path) -> None:
        code = main([str(word) for word in words])
        assert code == 0, (words, code)

    data, asked = write_records(folder / "chats.jsonl"), folder / "asked.json"
    many = write_records(folder / "many.jsonl", ROWS)
    asked.write_text('[{"role": "user", "content": "the quick"}]')
    run = folder / "run"
    keys = [
        "train.max_steps=4", "train.tokens_per_step=256", "train.eval_every=2", "train.sample_every=2",
        "train.save_every=2", "data.eval_fraction=0.2", "lora.r=4", 'train.track=["tensorboard"]',
    ]  # fmt: skip
    training = [str(data), "--out", str(run), *(part for key in keys for part in ("--set", key))]
    whippet("data", "check", data, many, "--model", checkpoint)
    whippet("data", "show", data, "--model", checkpoint)
    whippet("plan", checkpoint, *training)
    whippet("finetune", checkpoint, *training)
    whippet("finetune", run / "recipe.toml", "--set", "train.max_steps=6")
    full = ("--set", "train.method=full", "--set", "train.max_steps=2", "--set", "train.tokens_per_step=256")
    whippet("finetune", checkpoint, data, "--out", folder / "full", *full)
    whippet("export", run, "--dtype", "fp32")
    whippet("export", run, "--to", "adapter", "--out", folder / "exported")
    for model in (run, run / "hf", folder / "full"):
        whippet("generate", model, "--messages", asked, "--max-new-tokens", "4")
    whippet("chat", run, "--compare", "--prompt", "over two", "--max-new-tokens", "4")


def main() -> None:
    checkpoint, folder, events, *code = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    listen(events)
    for text in code:
        exec(text, {})
    walk(checkpoint, Path(folder))


if __name__ == "__main__":
    main()
