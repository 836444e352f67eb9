"""``whippet bench``: which rows are measured, what is said of those that are not, and what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from whippet.bench import settings, table
from whippet.bench.peers import Peers
from whippet.bench.results import HEAD
from whippet.bench.settings import ROWS, Row, Setting
from whippet.bench.table import Around, by_shape, left_out, measure_rows
from whippet.cli.main import main
from whippet.demo import ASSETS
from whippet.errors import UsageError

CPU, TINY = torch.device("cpu"), ASSETS / "tiny"
SMALL = Setting("tiny", docs=2, length=40)
SPEAKS = """
import json, os, sys
told = {"peer": "unsloth", "value": 1.0, "peak": 5, "versions": {"unsloth": "1.2"}, "texts": "--texts" in sys.argv}
print(json.dumps(told), flush=True)
os._exit(0)
"""


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CPU_ROWS", (Row("tiny", SMALL),))


@pytest.fixture
def peer_path(tmp_path: Path) -> Path:
    (tmp_path / "site" / "unsloth").mkdir(parents=True)
    (tmp_path / "site" / "unsloth" / "__init__.py").write_text(SPEAKS)
    return tmp_path / "site"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], small_rows: None) -> None:
    out_file, chart = tmp_path / "b.json", tmp_path / "c.png"
    words = ["bench", "--steps", "2", "--device", "cpu", "--out", str(out_file), "--chart", str(chart)]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told == json.loads(out_file.read_text()) and chart.read_bytes()[:4] == b"\x89PNG"
    row = told["rows"][0]
    assert (row["row"], row["unit"], row["peers"]) == ("tiny", "tokens/s", {}) and row["ours"]["value"] > 0
    assert row["ours"]["details"]["setting"]["shape"] == "tiny" and told["versions"]["torch"] == torch.__version__
    assert told["command"] == " ".join(["whippet", *words]) and HEAD in err
    assert max(map(len, err.splitlines())) <= 80
    assert main(["bench", "--from", str(out_file), "--chart", str(tmp_path / "d.png")]) == 0
    assert (tmp_path / "d.png").read_bytes() == chart.read_bytes()
    assert capsys.readouterr().out.splitlines()[1] == err.splitlines()[-1]


def test_a_peer_beside_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_rows: None, peer_path: Path
) -> None:
    """Both sides, the ratio, and the peers' versions."""
    words = ["bench", "--steps", "1", "--device", "cpu", "--checkpoint", str(TINY), "--peer-path", str(peer_path)]
    assert main([*words, "--peers", "unsloth", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    row = told["rows"][0]
    assert row["peers"]["unsloth"]["value"] == 1.0 and row["ratio"]["unsloth"] == row["ours"]["value"]
    assert told["versions"]["peers"] == {"unsloth": "1.2"}
    assert f"--checkpoint {TINY} --peers unsloth --peer-path {peer_path}" in told["command"]


def test_a_peer_that_fails_ends_nothing(capsys: pytest.CaptureFixture[str], small_rows: None, peer_path: Path) -> None:
    (peer_path / "unsloth" / "__init__.py").write_text("raise RuntimeError('no luck')")
    words = ["bench", "--steps", "1", "--device", "cpu", "--checkpoint", str(TINY), "--peer-path", str(peer_path)]
    assert main([*words, "--peers", "unsloth"]) == 0
    out = capsys.readouterr().out
    assert "unsloth: ended with 1: RuntimeError: no luck" in out and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rows", "nf5"], "known: nf4-small, nf4,"),
        (["--rows", "cold"], "cold (needs --checkpoint PATH of the 8b shape)"),
        (["--rows", "records-8"], "records-8 (needs --checkpoint PATH of the 8b shape and --records FILE)"),
        (["--steps", "0"], "--steps 0"),
        (["--peer-limit", "0"], "--peer-limit"),
        (["--peers", "hf"], "they need a --checkpoint"),
        (["--peers", "unsloth", "--checkpoint", str(TINY)], "cannot be imported: unsloth; see --peer-path"),
        (["--peer-path", "/absent"], "no such folder"),
        (["--context", "16GB"], "needs the row context"),
        (["--chart", "x.jpg"], ".png"),
        (["--from", "x.json", "--rows", "nf4"], "--rows has no meaning"),
        (["--from", "x.json", "--steps", "10"], "--steps has no meaning"),
        (["--from", "x.json", "--peer-limit", "600"], "--peer-limit has no meaning"),
        (["--from", "x.json"], "--device has no meaning"),
        (["--checkpoint", "/absent"], "/absent"),
        (["--out", "/absent/b.json"], "--out /absent/b.json: there is no folder /absent"),
        (["--chart", "/absent/c.png"], "--chart /absent/c.png: there is no folder /absent"),
        (["--out", "/dev/null"], "--out /dev/null: is there and no file"),
        (["--rows", "context", "--context", "16GB,48"], "--context '48': wanted a size, such as 16GB"),
        (["--rows", "context", "--context", "auto"], "--context 'auto': wanted a size"),
        (["--rows", "context", "--context", ""], "--context '': wanted a size"),
        (["--rows", "context", "--context", "16GB"], "runs on a GPU only, and the device is cpu"),
    ],
)
def test_what_cannot_be(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is measured before it is told."""
    monkeypatch.setattr(table, "measure_rows", lambda *_: pytest.fail("measured"))
    assert main(["bench", "--device", "cpu", *words]) == 2
    assert told in capsys.readouterr().err


def test_stored_results_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--from", "/absent.json"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--out", "b.json"], ["--chart", "c.png"]])
def test_a_folder_that_may_not_be_written(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "measure_rows", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["bench", "--device", "cpu", *words]) == 2
    assert f"nothing can be written to {tmp_path}" in capsys.readouterr().err


def test_a_write_that_fails_keeps_earlier_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is written aside, so no moment leaves half of it."""
    results = [table.Result(name, "x", "tokens/s", table.Side(1.0)) for name in ("one", "two")]
    monkeypatch.setattr(table, "measure_rows", lambda *_: iter(results))
    write = Path.write_text

    def cut(path: Path, text: str, **named: str) -> int:
        if '"two"' not in text:
            return write(path, text, **named)
        write(path, text[:30], **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut)
    assert main(["bench", "--device", "cpu", "--out", str(tmp_path / "b.json")]) == 130
    assert [row["row"] for row in json.loads((tmp_path / "b.json").read_text())["rows"]] == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_the_stored_command_has_the_limit_of_peers(capsys: pytest.CaptureFixture[str], small_rows: None) -> None:
    words = ["bench", "--steps", "1", "--device", "cpu"]
    for more in (["--peer-limit", "30.0"], []):
        assert main([*words, *more, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["command"] == " ".join(["whippet", *words, *more])


def test_help_loads_no_torch() -> None:
    code = """
import sys, whippet.cli.main as main
try:
    main.main(["bench", "--help"])
except SystemExit as end:
    assert end.code == 0
assert main.main(["bench", "--rows", "nf5"]) == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_is_left_out_is_told_in_a_line_each() -> None:
    assert list(left_out(ROWS, Around(CPU))) == [
        "left out: records-8, records-packed (needs --checkpoint PATH of the 8b shape and --records FILE)",
        "left out: cold (needs --checkpoint PATH of the 8b shape)",
    ]
    around = Around(CPU, checkpoints={"8b": TINY}, records=Path("x"))
    assert list(left_out(ROWS, around)) == []


def test_checkpoints_are_known_by_their_shape(tiny_checkpoint: Path) -> None:
    assert by_shape([TINY]) == {"tiny": TINY}
    with pytest.raises(UsageError, match="has the tiny shape too"):
        by_shape([TINY, TINY])
    with pytest.raises(UsageError, match="none of those that are measured"):
        by_shape([tiny_checkpoint])


def test_a_row_that_fails_is_told_and_the_next_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = Row("impossible", Setting("tiny", budget="1MiB"))
    refused, measured = measure_rows([impossible, Row("tiny", SMALL)], Around(CPU, steps=1))
    assert refused.ours.refused and "training needs at least" in refused.ours.error and not refused.ours.failed
    assert measured.ours.value is not None

    def broken(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory\nand a page more")

    monkeypatch.setattr(table, "measure", broken)
    [failed] = measure_rows([Row("tiny", SMALL)], Around(CPU))
    assert failed.ours.failed and failed.ours.error == "out of memory"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (ValueError("no number\nat all"), "no number"),
        (KeyError("time"), "KeyError: 'time'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
@pytest.mark.parametrize(("kind", "name"), [("steps", "measure"), ("cold", "cold_starts")])
def test_no_failure_of_ours_ends_the_table(
    kind: Literal["steps", "cold"], name: str, error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(table, name, broken)
    results = list(measure_rows([Row("a", SMALL, kind)], Around(CPU, checkpoints={"tiny": TINY})))
    assert [one.row for one in results] == (["a", "a-again", "import"] if kind == "cold" else ["a"])
    assert all(one.ours.failed and one.ours.error == told for one in results)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, small_rows: None, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(settings, "CPU_ROWS", (Row("tiny", Setting("tiny", budget="1MiB")),))
    assert main(["bench", "--device", "cpu", "--steps", "1"]) == 1
    assert "ours: memory: training needs" in capsys.readouterr().out


def test_records_are_read_once_and_given_to_peers_as_texts(tmp_path: Path, peer_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {n}", "output": "It is."}) + "\n" for n in range(30)))
    around = Around(CPU, 1, {"tiny": TINY}, path, (), Peers(["unsloth"], "cpu", peer_path))
    setting = Setting("tiny", docs=1, length=64)
    by_number, by_tokens = measure_rows(
        [Row("n", setting, "records", warmup=1, examples=4), Row("t", setting, "records", warmup=1)], around
    )
    assert (by_number.what, by_tokens.what) == ("tiny nf4 4 examples", "tiny nf4 64 tokens")
    for result, packing in ((by_number, False), (by_tokens, True)):
        assert result.unit == "examples/s" and result.ours.value is not None
        theirs = result.peers["unsloth"].details
        assert theirs["texts"] and ("--packing" in theirs["command"]) is packing
    assert list(around.read) == ["tiny"]


def test_context_rows_are_planned_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(setting: Setting, cap: str, device: torch.device) -> table.Side:
        asked.append(cap)
        return table.Side(7.0)

    monkeypatch.setattr(table, "measured_context", measured)
    row = next(row for row in ROWS if row.kind == "context")
    results = list(measure_rows([row], Around(CPU, contexts=("24GB", "12GB"))))
    assert [result.what.split()[-1] for result in results] == ["16GB", "24GB", "48GB", "80GB", "12GB"]
    assert [result.ours.planned for result in results] == [True, False, True, True, False] and asked == ["24GB", "12GB"]


def test_cold_rows(monkeypatch: pytest.MonkeyPatch, peer_path: Path) -> None:
    monkeypatch.setattr(table, "cold_starts", lambda *_: [table.Side(10.0), table.Side(5.0), table.Side(1.0)])
    around = Around(CPU, checkpoints={"tiny": TINY})
    results = list(measure_rows([Row("cold", SMALL, "cold")], around))
    assert [(one.row, one.unit, one.ours.value) for one in results] == [
        ("cold", "s", 10.0), ("cold-again", "s", 5.0), ("import", "s", 1.0),
    ]  # fmt: skip
