"""``whippet convert``: archives of torch become safetensors with the same bytes, and hostile ones become nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_meta import PARAMS, cut, random_weights, write
from safetensors.torch import load_file

from whippet.cli.main import main
from whippet.errors import ModelError, UsageError
from whippet.weights.convert import INDEX, SINGLE, convert
from whippet.weights.hf import INDEX as SAFE_INDEX
from whippet.weights.load import load_decoder
from whippet.weights.meta_write import write_meta


def archived(checkpoint: Path, folder: Path, *, shards: int = 1) -> dict[str, torch.Tensor]:
    """The checkpoint with its tensors, in bf16, in archives of torch; returns them."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: t.bfloat16() for name, t in load_file(checkpoint / "model.safetensors").items()}
    if shards == 1:
        torch.save(tensors, folder / SINGLE)
        return tensors
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {name: tensors[name] for name in names[number::shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize("shards", [1, 3])
def test_the_command_that_the_error_names_does_it(
    shards: int, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bin"
    tensors = archived(tiny_checkpoint, folder, shards=shards)
    with pytest.raises(ModelError, match=f"run: whippet convert {folder} --out DIR"):
        load_decoder(folder)
    out = tmp_path / "out"
    assert main(["convert", str(folder), "--out", str(out), "--max-shard-size", "60KB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["layout"], told["tensors"], told["folder"]) == ("bin", len(tensors), str(out))
    index = json.loads((out / SAFE_INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-{told['files']:05d}.safetensors" for n in range(1, told["files"] + 1)]
    assert len(files) > 1 and index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    back = {name: tensor for file in files for name, tensor in load_file(out / file).items()}
    assert back.keys() == tensors.keys()
    assert all(back[name].dtype == tensor.dtype and torch.equal(back[name], tensor) for name, tensor in tensors.items())
    texts = {path.name for path in tiny_checkpoint.iterdir() if path.suffix in (".json", ".jinja")}
    assert texts <= {path.name for path in out.iterdir()} and not (out / INDEX).exists()
    assert load_decoder(out, device="cpu").config == load_decoder(tiny_checkpoint, device="cpu").config


def test_a_checkpoint_of_meta_becomes_one_that_loads(tmp_path: Path) -> None:
    shards = cut(random_weights(PARAMS), 2, columns=False, kv_heads=2)
    folder = write(tmp_path / "meta", PARAMS, shards)
    (folder / "tokenizer.model").write_bytes(b"words")
    done = convert(folder, tmp_path / "out")
    assert (done.layout, done.files) == ("meta", 1)
    assert {path.name for path in done.folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.model"}
    again = write_meta(tmp_path / "again", load_decoder(done.folder, device="cpu"), ranks=2, by_rows=True)
    for path, shard in zip(again, shards, strict=True):
        assert all(torch.equal(tensor, shard[name]) for name, tensor in torch.load(path).items())


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (open, (str(self.canary), "w"))


def test_what_is_not_whole_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, out, canary = tmp_path / "bin", tmp_path / "out", tmp_path / "canary"
    archived(tiny_checkpoint, folder, shards=2)
    second = folder / "pytorch_model-00002-of-00002.bin"
    whole = second.read_bytes()
    raw = (folder / INDEX).read_text()

    def refused(said: str) -> None:
        with pytest.raises(ModelError, match=said):
            convert(folder, out)
        assert not out.exists() and {path.name for path in tmp_path.iterdir()} == {"bin"}

    torch.save({"model.norm.weight": torch.ones(3), "x": Payload(canary)}, second)
    refused("asks for '(io|_io|builtins|__builtin__) open'")
    torch.save({"model.norm.weight": torch.ones(3)}, second)
    refused("the index and the shards disagree")
    second.unlink()
    refused("missing, though the index names it")
    second.write_bytes(whole[:-100])
    refused("no archive as torch writes them")
    second.write_bytes(whole)
    (folder / INDEX).write_text(raw.replace(second.name, "../x.bin"))
    refused("must stay inside")
    (folder / INDEX).write_text(raw.replace(second.name, "model.safetensors"))
    refused("wanted .bin")
    config = json.loads((folder / "config.json").read_text())
    (folder / INDEX).write_text(raw)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    refused("tensors are missing")


def test_folders_that_cannot_be_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        convert(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UsageError, match=r"neither pytorch_model\.bin"):
        convert(tiny_checkpoint, tmp_path / "out")
    archived(tiny_checkpoint, tmp_path / "bin")
    with pytest.raises(UsageError, match="there already"):
        convert(tmp_path / "bin", tmp_path / "bin")
    assert main(["convert", str(tmp_path / "bin"), "--out", str(tmp_path / "o"), "--max-shard-size", "auto"]) == 2
