"""Secrets of the environment are in no file of a run or an export, and in nothing that is said, errors included."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import pytest

WALK = Path(__file__).with_name("walk.py")
SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub+0123/456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_PlantedOlderName+abcd/efghijkl",
    "WANDB_API_KEY": "f00dcafe0123456789abcdef0123456789planted",
}


def spellings(secret: str) -> set[bytes]:
    """The secret as it is, and as text is wont to be carried: in JSON, a URL, hexadecimal, base64 at each place."""
    raw = secret.encode()
    found = {raw, json.dumps(secret).strip('"').encode(), quote(secret, safe="").encode(), raw.hex().encode()}
    for shift in range(3):
        # The first and last characters of base64 depend on the bytes beside the secret.
        found.add(base64.b64encode(b"\0" * shift + raw)[4 : -4 if (len(raw) + shift) % 3 else None])
    return found


def hits(texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Which secret stands where."""
    forms = [(name, form) for name, secret in SECRETS.items() for form in spellings(secret)]
    return [f"{name} in {place}" for place, text in texts for name, form in forms if form in text]


def everything(folder: Path) -> list[tuple[str, bytes]]:
    """Every path below ``folder``, and what each file holds."""
    paths = sorted(folder.rglob("*"))
    return [(str(path), str(path).encode() + (path.read_bytes() if path.is_file() else b"")) for path in paths]


def planted(command: list[str | Path], **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python with the secrets in its environment."""
    env = os.environ | SECRETS | {"OMP_NUM_THREADS": "1"} | more
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, env=env, timeout=240)


def test_no_file_of_a_run_or_an_export_holds_a_secret(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Every file that the walk writes, hidden ones and names included, and both streams: 0 hits."""
    done = planted([WALK, tiny_checkpoint, tmp_path, tmp_path / "events.txt"])
    assert done.returncode == 0, done.stderr[-3000:]
    written = everything(tmp_path)
    names = {Path(place).name for place, _ in written}
    assert {
        "recipe.toml",
        "environment.json",
        "report.html",
        "README.md",
        "verify.json",
        ".lock",
        "state.json",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert hits([*written, ("stdout", done.stdout), ("stderr", done.stderr)]) == []


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "org/no-such-model", "DATA"),
        ("finetune", "CHECKPOINT", "org/no-such-data"),
        ("finetune", "CHECKPOINT", "DATA", "--set", "lora.rank=3"),
        pytest.param(("generate", "org/no-such-model", "--prompt", "x"), marks=pytest.mark.long),
        pytest.param(("export", "org/no-such-model", "--out", "OUT"), marks=pytest.mark.long),
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_what_fails_tells_no_secret(words: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Errors, those of the hub too, which was asked with the token: it cannot be reached here."""
    (tmp_path / "d.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    named = {"CHECKPOINT": str(tiny_checkpoint), "DATA": str(tmp_path / "d.jsonl"), "OUT": str(tmp_path / "out")}
    arguments = [named.get(word, word) for word in words]
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_VERBOSITY": "debug"}
    done = planted(["-m", "whippet", *arguments], **closed)
    assert done.returncode in (2, 3), done.stderr
    assert done.stderr.startswith(b"whippet: ") or b"\nwhippet: " in done.stderr
    assert hits([*everything(tmp_path), ("stdout", done.stdout), ("stderr", done.stderr)]) == []


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_the_search_finds_what_is_there(secret: str) -> None:
    """Each spelling is found inside other bytes."""
    raw = secret.encode()
    for shift in range(6):
        before = b"\xff" * shift
        assert hits([("x", before + raw + b"\0")])
        assert hits([("x", before + raw.hex().encode())])
        assert hits([("x", base64.b64encode(before + raw + b"\xff\xff"))])
    assert hits([("x", quote(secret, safe="").encode())])
    assert hits([("x", b"")]) == []
