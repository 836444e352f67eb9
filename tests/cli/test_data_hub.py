"""``whippet data`` with the model of a hub id: its tokenizer is fetched, never its weights."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_train import write_records

from whippet.cli.main import main


@pytest.mark.parametrize("verb", ["check", "show"])
def test_of_a_hub_id_no_weights_are_fetched(
    verb: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import huggingface_hub

    fetched: list[str] = []

    def snapshot_download(
        name: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str], **_: Any
    ) -> str:
        assert (name, revision) == ("org/name", "v3")
        for path in tiny_checkpoint.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, tmp_path / path.name)
                fetched.append(path.name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    data = write_records(tmp_path / "chats.jsonl", 2)
    assert main(["data", verb, str(data), "--model", "org/name", "--revision", "v3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])
    assert "tokenizer.json" in fetched and "config.json" in fetched
    assert "model.safetensors" not in fetched


def test_a_model_that_is_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_records(tmp_path / "chats.jsonl", 2)
    assert main(["data", "check", str(data), "--model", "nowhere"]) == 2
    assert "nowhere: no such folder, and no hub id either" in capsys.readouterr().err
