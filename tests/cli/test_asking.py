"""Options of ``chat`` and ``generate`` that become a ``Sampling``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest

from whippet.cli import asking
from whippet.errors import UsageError
from whippet.infer.sampling import Sampling


def given_as(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    asking.configure(parser, temperature="0", most="512")
    return parser.parse_args(["MODEL", *words])


def parsed(*words: str) -> dict[str, object]:
    return asking.sampling_of(given_as(*words))


def test_every_field_but_the_biases_has_an_option() -> None:
    given: dict[str, object] = {
        "max_new_tokens": 30, "temperature": 1.5, "top_p": 0.8, "top_k": 50, "min_p": 0.01, "seed": 4,
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.25,
    }  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert parsed(*words, "--stop", "a", "--stop", "b") == given | {"stop": ["a", "b"]}
    assert given.keys() | {"stop", "logit_bias"} == {field.name for field in fields(Sampling)}


def test_what_is_not_said_is_left_to_the_model() -> None:
    assert parsed() == {}


def told(*words: str) -> dict[str, Any]:
    return asking.template_variables(given_as(*(part for word in words for part in ("--template-variable", word))))


def test_template_variables_are_json_or_text() -> None:
    assert told() == {}
    assert told("a=false", "b=26 Jul 2024", 'c={"d": [1, 2.5]}', "e=", 'f="1"', "g=x=y", "h=NaN", "i=[") == {
        "a": False, "b": "26 Jul 2024", "c": {"d": [1, 2.5]}, "e": "", "f": "1", "g": "x=y", "h": "NaN", "i": "[",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [(["a"], "a: wanted NAME=VALUE"), (["=1"], "=1: wanted NAME"), (["a=1", "a=2"], "a: is given tw")],
)
def test_template_variables_that_are_none(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=f"--template-variable {said}"):
        told(*words)
