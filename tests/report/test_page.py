"""report.html: one file that loads nothing, shows every figure, and lets no record become markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import records

from whippet.options import DataOptions, ModelOptions, Recipe, Source, TrainOptions
from whippet.recipe import write_recipe
from whippet.report.folder import read_run
from whippet.report.page import run_page, write_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VOID = {"meta", "br", "img", "link", "input"}


class Outline(HTMLParser):
    """Every element with its attributes and text; complains about elements that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif "style" not in self.open:
            self.text += data


def write_run(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = DataOptions(sources=(Source("/home/somebody/pets.jsonl"),))
    recipe = Recipe(model=ModelOptions(path="org/base", base="nf4"), data=data, train=TrainOptions(seed=77))
    write_recipe(recipe, folder / "recipe.toml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in files.pop("records", records())))
    for name, value in files.items():
        text = "".join(json.dumps(v) + "\n" for v in value) if name == "samples" else json.dumps(value)
        (folder / f"{name}.{'jsonl' if name == 'samples' else 'json'}").write_text(text)
    return folder


def test_it_shows_what_the_folder_holds(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "my-run",
        samples=[{"step": 0, "prompt": "Who?", "text": "no idea"}, {"step": 40, "prompt": "Who?", "text": "me"}],
        plan={"peak_bytes": 3 * 2**30, "steps": 40, "seconds": 187.0},
        data={"format": "alpaca", "kept": 1200, "lengths": list(range(30)), "sources": [{"path": "/x/pets.jsonl"}]},
        environment={"torch": "2.13.0"},
    )
    write_page(read_run(folder), folder / "report.html")
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    outline = Outline((folder / "report.html").read_text(encoding="utf-8"))
    for text in ("my-run", "org/base, taught pets.jsonl · LoRA over nf4", "1.1856", "from 3.5000", "163,840", "no idea",
                 "3 GiB", "3:07", "1,200", "2.13.0", "and 18 more", "train.seed", "77", "step 40"):  # fmt: skip
        assert text in outline.text, text
    charts = [attributes["aria-label"] for _, attributes in outline.elements if attributes.get("class") == "plot"]
    assert [str(label).split(":")[0] for label in charts] == [
        "Loss", "Learning rate", "Gradient norm", "Tokens a second", "Accuracy of the next token",
    ]  # fmt: skip
    assert "/home/somebody" not in outline.text.split("Recipe")[0]


def test_it_loads_nothing(tmp_path: Path) -> None:
    page = run_page(read_run(write_run(tmp_path / "r")))
    outline = Outline(page)
    for tag, attributes in outline.elements:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)
        assert not re.match(r"[a-z]+:|//", attributes.get("href") or ""), attributes
    assert "http" not in re.sub(r"http-equiv", "", page) and "@import" not in page and "url(" not in page
    policy = next(a["content"] for _, a in outline.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)


def test_records_cannot_become_markup(tmp_path: Path) -> None:
    harmless = {"data": {"k": "v"}, "plan": {"k": "v"}, "environment": {"k": "v"}}
    samples = [{"step": 1, "prompt": "p", "text": "t"}]
    clean = Outline(run_page(read_run(write_run(tmp_path / "a", samples=samples, **harmless))))
    folder = write_run(
        tmp_path / "b",
        samples=[{"step": HOSTILE, "prompt": HOSTILE, "text": HOSTILE}],
        data={HOSTILE: HOSTILE},
        plan={HOSTILE: [HOSTILE]},
        environment={HOSTILE: HOSTILE},
    )
    outline = Outline(run_page(read_run(folder)))
    assert [tag for tag, _ in outline.elements] == [tag for tag, _ in clean.elements]
    assert outline.text.count(HOSTILE) == 3 + 6


def test_charts_carry_their_readings(tmp_path: Path) -> None:
    outline = Outline(run_page(read_run(write_run(tmp_path / "r"))))
    readings = [json.loads(text) for attributes, text in outline.scripts if attributes.get("type")]
    assert len(readings) == 5
    training, held_out = readings[0]["lines"]
    assert training["step"] == list(range(1, 41)) and held_out["step"] == [0, 10, 20, 30, 40]
    assert held_out["value"][0] == "3.5" and len(held_out["at"]) == 5
    assert held_out["at"] == sorted(held_out["at"]), "a falling loss goes down the page"


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    many = [{"step": step, "loss": 1.0 + step % 7} for step in range(1, 50_001)]
    assert len(run_page(read_run(write_run(tmp_path / "r", records=many)))) < 120_000


@pytest.mark.parametrize("given", [[], [{"step": 1, "loss": 2.0}], [{"step": 0, "eval_loss": None}]])
def test_a_run_that_has_barely_begun(tmp_path: Path, given: list[Any]) -> None:
    Outline(run_page(read_run(write_run(tmp_path / "r", records=given))))
