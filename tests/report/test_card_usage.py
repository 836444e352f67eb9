"""What the card says to type is typed here: transformers, peft, whippet."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_runs import write_run

import whippet
from whippet.cli.main import main
from whippet.report.card import CardFacts, model_card
from whippet.report.folder import RunFacts
from whippet.report.licences import Licence

TINY = Path(whippet.__file__).parent / "assets" / "tiny"


def block(card: str, language: str, begins: str = "") -> str:
    """The first code block of the card's section on use that begins so."""
    found = re.findall(rf"```{language}\n(.*?)\n```", card.split("## How to use")[1], re.DOTALL)
    return next(code for code in found if code.startswith(begins))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a copy of the embedded model, with a random adapter."""
    home = tmp_path_factory.mktemp("usage")
    shutil.copytree(TINY, home / "base")
    return write_run(home / "run", home / "base", held="fp32")


def test_the_snippets_of_transformers_run(run: Path) -> None:
    """Both in one process, offline: importing transformers is most of the time."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    base = run.parent / "base"
    whole = block(model_card(CardFacts("tiny", str(base), "finetune")), "python")
    adapter = block(model_card(CardFacts("tiny", str(base), "adapter")), "python").replace('"BASE"', repr(str(base)))
    shorter = [code.replace("max_new_tokens=200", "max_new_tokens=8") for code in (whole, adapter)]
    script = f"import os\nos.chdir({str(base)!r})\n{shorter[0]}\nos.chdir({str(run / 'adapter')!r})\n{shorter[1]}\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240,
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_commands_of_whippet_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base = run.parent / "base"
    whole = model_card(CardFacts("tiny", str(base), "finetune", chat=False))
    adapter = model_card(CardFacts("tiny", str(base), "adapter", chat=False))
    for place, card in ((base, whole), (run / "adapter", adapter)):
        monkeypatch.chdir(place)
        words = shlex.split(block(card, "sh", "whippet").replace("BASE", str(base)))
        assert main([*words[1:], "--max-new-tokens", "4"]) == 0
        assert capfd.readouterr().out.endswith("\n")
    monkeypatch.chdir(run / "adapter")
    export, serve = block(adapter, "sh", "whippet export").splitlines()
    assert main(shlex.split(export)[1:]) == 0
    assert (run / "adapter" / shlex.split(serve)[2]).read_bytes()[:4] == b"GGUF"


def test_vllm_is_told_the_rank_that_it_would_refuse() -> None:
    def served(r: int, name: str = "my run") -> str:
        recipe = {"lora": {"r": r}, "train": {"method": "lora"}}
        return block(model_card(CardFacts(name, "org/base", "adapter", RunFacts(Path("x"), recipe))), "sh", "vllm")

    assert served(16) == "vllm serve org/base --enable-lora --lora-modules my-run=."
    assert "--max-lora-rank 32 " in served(17) and "--max-lora-rank 512 " in served(512)
    with pytest.raises(StopIteration):
        served(513)
    assert served(8, "$(x); --y").endswith("--lora-modules x---y=.")


@pytest.mark.parametrize("chat", [True, False])
def test_a_gguf_file_is_for_llama_cpp_alone(chat: bool) -> None:
    export = {"format": "gguf", "dtype": "q4_k_m", "passed": True}
    card = model_card(CardFacts("x", "org/base", "finetune", chat=chat, export=export, license=Licence("mit")))
    assert 'library_name: "gguf"' in card and "transformers" not in card and "a GGUF file" in card
    assert block(card, "sh").splitlines()[1] == "llama-server -m model-q4_k_m.gguf"
    assert ("-cnv" in block(card, "sh")) is chat
