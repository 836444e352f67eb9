"""``whippet export``: the folder on standard output, figures on standard error, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_runs import tiny_run

from whippet.cli.main import main
from whippet.report import exported


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("cli"))[1]


def test_it_prints_the_folder_and_tells_the_figures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "hf", "--out", str(out), "--device", "cpu"]) == 0
    said, told = capsys.readouterr()
    assert said == f"{out}\n" and "mean KL" in told and "passed" in told and "merged onto: trained" in told
    assert max(map(len, told.splitlines())) <= 110


def test_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "adapter", "--out", str(out), "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True and told["format"] == "adapter" and told["folder"] == str(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "gguf"], "known: hf, adapter"),
        (["--to", "hf", "--dtype", "fp8"], "known: bf16, fp16, fp32"),
        (["--to", "hf", "--merge-onto", "x"], "known: trained, 16bit"),
        (["--to", "adapter"], "there already"),
    ],
)
def test_usage_errors_end_with_2(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_source_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "none" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_gate_ends_with_4(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exported.BOUNDS, "bf16", 1e-9)
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--device", "cpu", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["exit"] == 4
    assert json.loads((out / "verify.json").read_text())["passed"] is False
