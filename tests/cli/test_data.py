"""``whippet data show`` and ``data check``: what they print, as text and as JSON, and what they end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whippet.cli.main import main

BOS_TWICE = "{{ bos_token * 2 }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
ENDLESS = "{% for i in range(9999999) %}{% endfor %}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def written(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def good(tmp_path: Path) -> str:
    """Four records; the second holds what would clear a terminal."""
    lines = [chat("the dog", "runs"), chat("a cat\nand", "two\x1b[2J"), chat("one", "grey cat"), chat("two", "lazy")]
    return written(tmp_path / "good.jsonl", *lines)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """Three records; the second has an empty answer."""
    return written(tmp_path / "bad.jsonl", chat("one", "two"), chat("three", ""), chat("four", "five"))


def test_show_brackets_what_is_trained(good: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", good, "--model", str(tiny_checkpoint)]) == 0
    out, err = capsys.readouterr()
    heads = [line for line in out.splitlines() if line.startswith("── ")]
    assert [head.split("  ")[:2] for head in heads] == [[f"── {good}:{line}", "messages"] for line in (1, 2, 3)]
    assert all(head.endswith(" trained") for head in heads) and err == ""
    shown = out.replace("⟧⟦", "").replace("↵\n", "\n")
    assert "<|im_start|>user\nthe dog<|im_end|>\n<|im_start|>assistant\n⟦runs<|im_end|>⟧" in shown
    assert "two␛[2J" in shown and "\x1b" not in out


def test_show_as_json_is_one_line_a_record(
    good: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "show", good, "--model", str(tiny_checkpoint), "--count", "2", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["where"] for one in shown] == [f"{good}:1", f"{good}:2"]
    for one in shown:
        assert "".join(token["text"] for token in one["tokens"]) == one["text"]
    trained = "".join(token["text"] for token in shown[0]["tokens"] if token["weight"])
    assert trained == "runs<|im_end|>" and shown[0]["text"].startswith("<|im_start|>user\nthe dog")


def test_show_says_what_is_bad_and_ends_with_3(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the embedded model, which is what is asked where none is named."""
    assert main(["data", "show", bad]) == 3
    out, err = capsys.readouterr()
    assert out.count("── ") == 2 and err == f"whippet: {bad}:2: messages[1]: empty answer\n"


@pytest.mark.parametrize("count", ["0", "-1"])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_show_wants_a_count(good: str, count: str, as_json: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", good, "--count", count, *as_json]) == 2
    out, err = capsys.readouterr()
    assert err == f"whippet: --count {count}: must be 1 or more\n"
    assert not out or (as_json and json.loads(out)["error"]["exit"] == 2)


def test_check_counts_and_measures(good: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "check", good, "--model", str(tiny_checkpoint)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err == "" and max(map(len, out.splitlines())) <= 80
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines() if line and not line.startswith(" ")}
    assert rows["records"][1] == rows["kept"][1] == rows["training"][1] == "4" and rows["refused"][1] == "0"
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["kept"], told["refused"], told["problems"]) == (4, 4, 0, [])
    assert told["sources"][0]["forms"] == {"messages": 1} and 0 < told["trained_tokens"] < told["train_tokens"]
    assert told["max_length"] == 512, "the model's context"


def test_check_names_each_bad_record_and_ends_with_3(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", bad]) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "/bad.jsonl:2: messages[1]: empty answer" in out and "embedded model" in out
    assert main(["data", "check", bad, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["kept"], told["refused"]) == (3, 2, 1)
    assert told["problems"] == [{"file": bad, "line": 2, "record": 2, "field": "messages[1]", "reason": "empty answer"}]


@pytest.mark.parametrize("action", ["show", "check"])
def test_what_cannot_be_read(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", action, str(tmp_path / "none.jsonl"), "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["type"] == "DataError" and "none.jsonl" in err and err.count("\n") == 1
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["data", action, str(tmp_path / "empty.jsonl")]) == 3
    assert "no record" in capsys.readouterr().err
    assert main(["data", action]) == 2 and main(["data", action, "f", "--format", "odd"]) == 2


def test_check_wants_a_length(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", good, "--max-length", "1"]) == 2
    assert capsys.readouterr().err == "whippet: --max-length 1: must be 2 or more\n"


@pytest.mark.parametrize("command", [["data", "check"], ["data", "show"], ["plan"], ["finetune"]])
@pytest.mark.parametrize(
    ("source", "said"), [(BOS_TWICE, "two '<s>'"), (ENDLESS, "was stopped: OverflowError")], ids=["bos", "endless"]
)
def test_a_fault_of_the_template_is_one_line(
    good: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    source: str,
    said: str,
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(source)
    if command[0] == "data":
        words = [*command, good, "--model", str(tiny_checkpoint), "--template", str(own)]
    else:
        words = [*command, str(tiny_checkpoint), good, "--set", f"data.template={own}", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"whippet: chat template {own} ") and said in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
