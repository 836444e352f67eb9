"""What ``generation_config.json`` says about a repetition penalty."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from whippet.errors import ModelError
from whippet.infer.defaults import CHAT, chat_sampling
from whippet.infer.sampling import Sampling


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"repetition_penalty": 1.1}, replace(CHAT, repetition_penalty=1.1)),
        ({"repetition_penalty": 1.05, "do_sample": False}, Sampling(2048, repetition_penalty=1.05)),
        ({"repetition_penalty": 1.2, "temperature": 0.6}, Sampling(2048, temperature=0.6, repetition_penalty=1.2)),
        ({"repetition_penalty": None}, CHAT),
    ],
)
def test_a_chat_penalises_repetition_as_the_checkpoint_says(
    tmp_path: Path, config: dict[str, object], expected: Sampling
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert chat_sampling(tmp_path) == expected


@pytest.mark.parametrize("value", [0, -1, "1.1", True, 11])
def test_a_penalty_that_cannot_be_is_named(tmp_path: Path, value: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": value}))
    with pytest.raises(ModelError, match=r"generation_config\.json: repetition_penalty"):
        chat_sampling(tmp_path)
