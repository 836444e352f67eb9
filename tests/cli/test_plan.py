"""``whippet plan``: what training would take, for people and as JSON, and nothing on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_train import write_records

from whippet.cli.main import main


def test_plan_in_words_and_as_json(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_records(tmp_path / "chats.jsonl"), tmp_path / "run"
    keys = ["model.device=cpu", "train.max_steps=7", "train.tokens_per_step=160", "data.max_length=128"]
    command = ["plan", str(tiny_checkpoint), str(data), "--out", str(out), *(f"--set={key}" for key in keys)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80 and "steps   7 of about 160 tokens" in said
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 7 and told["tokens_per_step"] == 160
    assert told["data"]["kept"] == told["data"]["rows"] == 40 and told["data"]["refused"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl"]
