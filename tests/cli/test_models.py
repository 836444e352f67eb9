"""``whippet models``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whippet.cli.main import main
from whippet.model.families import FAMILIES
from whippet.model.known import ROWS


def test_the_table_fits_a_terminal_and_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert all(name.split("/")[1] in told for name in ROWS) and ", ".join(sorted(FAMILIES)) in told
    assert "Llama-3.1-8B-Instruct   8.03 B 131,072    6.6" in told


def test_a_folder_instead(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(tiny_checkpoint), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["model"] == str(tiny_checkpoint) and row["family"] == "llama" and 0 < row["bytes"]["qlora"] < 2**30
    assert main(["models", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
