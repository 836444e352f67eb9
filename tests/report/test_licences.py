"""Licences: found beside the weights, their duties done, their files carried along."""

from __future__ import annotations

from pathlib import Path

import pytest

from whippet.report.card import CardFacts, model_card
from whippet.report.licences import (
    DUTIES,
    NOTICE,
    Licence,
    carry_licence,
    languages_of,
    license_of,
    public_title,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("---\nlicense: llama3.2\nlanguage: en\n---\n# x", Licence("llama3.2")),
        ("---\nlanguage: en\n---\nlicense: mit", None),
        ('---\nlicense: "apache-2.0"\n---', Licence("apache-2.0")),
        ("---\r\nlicense: mit\r\n---\r\n", Licence("mit")),
        (
            "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://a.org/b/LICENSE\n---",
            Licence("other", "qwen-research", "https://a.org/b/LICENSE"),
        ),
        ("---\nlicense: other\nlicense_link: javascript:x\nlicense_name: '[x](y)'\n---", Licence("other")),
        ("license: mit", None),
        ("---\nlicense: <script>\n---", None),
    ],
)
def test_the_licence_of_the_base_is_found(tmp_path: Path, text: str, wanted: Licence | None) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert license_of(tmp_path) == wanted
    assert license_of(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("base", "wanted"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"), ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("meta-llama/Llama-2-7b-hf", "llama2"), ("somebody/Llama-3.1-8B", None), ("meta-llama/LlamaGuard-7b", None),
    ],
)  # fmt: skip
def test_metas_own_names_tell_it(tmp_path: Path, base: str, wanted: str | None) -> None:
    found = license_of(tmp_path, base)
    assert (found.id if found else None) == wanted
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert license_of(tmp_path, base) == Licence("mit")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("---\nlanguage: en\n---", ("en",)),
        ("---\nlanguage:\n- en\n- de\n- <b>\ntags:\n- fr\n---", ("en", "de")),
        ("---\ntags:\n- x\nlanguage:\n  - 'pt-BR'\n---", ("pt-BR",)),
        ('---\nlanguage: [en, "no"]\n---', ("en", "no")),
        ("---\ntags: [en]\n---", ()),
    ],
)
def test_languages_of_the_base(tmp_path: Path, text: str, wanted: tuple[str, ...]) -> None:
    (tmp_path / "README.md").write_text(text)
    assert languages_of(tmp_path) == wanted


@pytest.mark.parametrize(
    ("name", "licence", "wanted"),
    [
        ("my-run", "llama3.3", "Llama-my-run"), ("llama-mine", "llama3.3", "llama-mine"), ("x", "llama3", "Llama-3-x"),
        ("Llama 3 x", "llama3", "Llama 3 x"), ("x", "llama2", "x"), ("x", "mit", "x"),
    ],
)  # fmt: skip
def test_the_name_that_a_licence_asks_for(name: str, licence: str, wanted: str) -> None:
    assert public_title(name, Licence(licence)) == wanted


@pytest.mark.parametrize("licence", [id for id, duties in DUTIES.items() if duties.display])
def test_the_card_does_what_llama_licences_ask(licence: str) -> None:
    duties = DUTIES[licence]
    card = model_card(CardFacts("mine", "org/base", "finetune", license=Licence(licence)))
    assert f"# {duties.prefix}-mine\n\n**{duties.display}**" in card
    for text in (f"[{duties.name}]({duties.link})", f"({duties.policy})", f'begin with "{duties.prefix}"', NOTICE):
        assert text in card, text


def test_other_licences_are_named_and_a_missing_one_too() -> None:
    told = [
        model_card(CardFacts("mine", "org/base", "finetune", license=licence))
        for licence in (Licence("other", "qwen-research", "https://a.org/L"), Licence("mit"), None)
    ]
    assert "`other` (qwen-research): <https://a.org/L>." in told[0] and "base: `mit`." in told[1]
    assert "look it up before sharing" in told[2] and all("# mine\n" in card for card in told)


def test_its_files_go_along(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    (base / "LICENSE.txt").write_text("the agreement")
    (base / "USE_POLICY.md").write_text("x" * (1 << 21))
    for _ in range(2):
        carry_licence(base, Licence("llama3.1"), out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "LICENSE.txt": "the agreement",
        NOTICE: "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All "
        "Rights Reserved.\n",
    }
    (base / "LICENSE").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("secret")
    carry_licence(base, None, out)
    assert not (out / "LICENSE").exists()
