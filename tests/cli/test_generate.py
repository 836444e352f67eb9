"""``whippet generate``: exactly the continuation on standard output, and errors before anything is written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers_infer import CHAT, write_checkpoint
from helpers_tools import Said, scripted

import whippet
from whippet.cli import asking
from whippet.cli.main import main
from whippet.infer.model import Model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def messages(tmp_path: Path) -> str:
    path = tmp_path / "m.json"
    path.write_text(json.dumps([{"role": "user", "content": "the quick"}]))
    return str(path)


def test_stdout_is_the_continuation_and_a_newline(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", checkpoint, "--prompt", "the quick", "--max-new-tokens", "20", "--base", "fp32"]) == 0
    out, err = capsys.readouterr()
    assert out == whippet.load(checkpoint, base="fp32").generate("the quick", max_new_tokens=20) + "\n"
    assert err == ""


def test_the_program_itself(checkpoint: str) -> None:
    command = [sys.executable, "-m", "whippet", "generate", checkpoint, "--prompt", "日本", "--max-new-tokens", "5"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode() == whippet.load(checkpoint).generate("日本", max_new_tokens=5) + "\n"
    assert done.stderr == b""


def test_messages_are_answered(checkpoint: str, messages: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = whippet.load(checkpoint)
    asked = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the quick"}]
    assert main(["generate", checkpoint, "--messages", messages, "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().out == model.generate(asked[1:], max_new_tokens=9) + "\n"
    assert main(["generate", checkpoint, "--messages", messages, "--system", "be brief", "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().out == model.generate(asked, max_new_tokens=9) + "\n"


def test_messages_from_standard_input(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.dumps({"messages": [{"role": "user", "content": "é"}]}, ensure_ascii=False).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert main(["generate", checkpoint, "--messages", "-", "--max-new-tokens", "4"]) == 0
    expected = whippet.load(checkpoint).generate([{"role": "user", "content": "é"}], max_new_tokens=4)
    assert capsys.readouterr().out == expected + "\n"


def test_only_tools_that_were_offered_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call>'
    said = Said("")
    model = scripted(tmp_path, [])
    monkeypatch.setattr(model, "stream", lambda *args, **more: said, raising=False)
    monkeypatch.setattr(model, "message", partial(Model.message, model), raising=False)
    monkeypatch.setattr(asking, "open_model", lambda *args, **more: model)
    tool = {"type": "function", "function": {"name": "get", "parameters": {}}}
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "tools": [tool]}))
    for name in ("get", "rm"):
        said.text = call % name
        assert main(["generate", "x", "--messages", str(path), "--json"]) == 0
        message = json.loads(capsys.readouterr().out)["message"]
        assert ("tool_calls" in message) == (name == "get") and (message["content"] == call % name) == (name == "rm")


def test_template_variables_reach_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_checkpoint(tmp_path, template="{{ mood }}" + CHAT))
    path = tmp_path / "m.json"
    path.write_text('[{"role": "user", "content": "x"}]')
    sizes = []
    for more in ([], ["--template-variable", "mood=0123456789"]):
        assert main(["generate", folder, "--messages", str(path), "--max-new-tokens", "1", "--json", *more]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["prompt_tokens"])
    assert sizes[1] == sizes[0] + len(whippet.load(folder).tokenizer.encode("0123456789"))


def test_json_tells_the_figures(checkpoint: str, messages: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", checkpoint, "--messages", messages, "--max-new-tokens", "9", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finish"] == "length" and told["new_tokens"] == 9 and told["prompt_tokens"] > 9
    assert told["message"]["role"] == "assistant" and told["text"]
    assert main(["generate", checkpoint, "--prompt", "x", "--max-new-tokens", "9", "--json"]) == 0
    assert "message" not in json.loads(capsys.readouterr().out)


def test_sampling_arguments_arrive(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"temperature": 1.5, "top_p": 0.8, "top_k": 50, "min_p": 0.01, "seed": 4, "max_new_tokens": 30}
    flags = [word for key, value in arguments.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["generate", checkpoint, "--prompt", "one", *flags]) == 0
    text = capsys.readouterr().out
    assert text == whippet.load(checkpoint).generate("one", **arguments) + "\n"
    stop = text[3:5]
    assert main(["generate", checkpoint, "--prompt", "one", *flags, "--stop", "never there", "--stop", stop]) == 0
    assert capsys.readouterr().out == text.partition(stop)[0] + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--prompt", "x", "--temperature", "-1"], 2, "temperature = -1.0: must be 0 or more"),
        (["--prompt", "x", "--max-new-tokens", "0"], 2, "max_new_tokens = 0: must be 1 or more"),
        (["--prompt", "x", "--template", "chatml"], 2, "--template needs --messages"),
        (["--prompt", "x", "--system", ""], 2, "--system needs --messages"),
        (["--prompt", "x", "--template-variable", "a=1"], 2, "--template-variable needs --messages"),
        (["--messages", "SYSTEM", "--template-variable", "a=1"], 2, "reads no variable 'a'"),
        (["--messages", "SYSTEM", "--template-variable", "a=null", "--template", "TOLD"], 2, "a is None; wanted text"),
        (["--messages", "none.json"], 2, "none.json: cannot be read: No such file"),
        (["--messages", "BROKEN"], 3, "broken.json:2: not valid JSON"),
        (["--messages", "LATIN"], 3, "latin.json: not UTF-8 at byte 1"),
        (["--messages", "SYSTEM", "--system", "x"], 2, "begins with a system message"),
        (["--messages", "SYSTEM", "--template", "chatm"], 2, "chatml"),
        (["--prompt", "x", "--adapter", "nowhere"], 2, "nowhere is no adapter"),
        (["--prompt", "x", "--device", "tpu"], 2, "'tpu'"),
    ],
)
def test_errors_are_one_line(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "broken.json").write_text("[\n{")
    (tmp_path / "latin.json").write_bytes(b"[\xe9]")
    (tmp_path / "system.json").write_text('[{"role": "system", "content": "x"}]')
    (tmp_path / "told.jinja").write_text(CHAT + "{{ a }}")
    files = {"BROKEN": "broken.json", "LATIN": "latin.json", "SYSTEM": "system.json", "TOLD": "told.jinja"}
    arguments = [str(tmp_path / files[word]) if word in files else word for word in arguments]
    assert main(["generate", checkpoint, *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("whippet: ") and err.count("\n") == 1


def test_a_missing_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path / "nowhere"), "--prompt", "x"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert "is no model" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--prompt", "x", "--messages", "y"], ["--prompt", "x", "--top-k", "many"]])
def test_usage(checkpoint: str, arguments: list[str]) -> None:
    assert main(["generate", checkpoint, *arguments]) == 2


def test_a_model_cannot_steer_the_terminal() -> None:
    assert asking.visible("a\x1b[2Jb\x9b\x7f\n\tc") == "a␛[2Jb��\n\tc"
