"""Options of ``chat`` and ``generate`` that become a ``Sampling``."""

from __future__ import annotations

import argparse
from dataclasses import fields

from whippet.cli import asking
from whippet.infer.sampling import Sampling


def parsed(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    asking.configure(parser, temperature="0", most="512")
    return asking.sampling_of(parser.parse_args(["MODEL", *words]))


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
