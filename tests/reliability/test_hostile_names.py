"""300 hostile names, as files of an index and as targets of links: nothing outside the folder is read or written.

Doors: the index of a checkpoint, an adapter's files, a data folder, and an export of such a checkpoint. Behind each
name that climbs lies a file that would be read with pleasure, so that a door left open shows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_infer import write_checkpoint
from helpers_paths import hostile
from safetensors.torch import load_file

from whippet import lora
from whippet.options import LoraOptions
from whippet.weights.adapter import save_adapter
from whippet.weights.load import load_decoder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and names of POSIX")

WALK = """
import json, os, sys
from pathlib import Path
from whippet.chat.tokenizer import Tokenizer
from whippet.data.sources import read_rows
from whippet.errors import WhippetError
from whippet.export import export
from whippet.options import Source
from whippet.weights.adapter import load_adapter
from whippet.weights.load import load_decoder

place, case = Path(sys.argv[1]), Path(sys.argv[2])
names = json.loads((place / "names.json").read_text())
model, adapter, data = case / "model", case / "adapter", case / "data"
index, weights = model / "model.safetensors.index.json", model / "model.safetensors"
tensors = json.loads(index.read_text())["weight_map"]
decoder = load_decoder(place / "good", device="cpu")
targets = {os.path.realpath(folder / name) for folder in (model, adapter, data) for name in names if "\\0" not in name}
opened, answers, watching, lines = [], {"refused": 0, "served": 0}, False, set()

def hook(event, args):
    if not watching or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link"):
        return
    for path in args[:2]:
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("/"):
            path = Path(os.path.realpath(path))
            ours = any(path.is_relative_to(folder) for folder in (model, adapter, data))
            if not ours and (path.is_relative_to(place) or str(path) in targets):
                opened.append((event, str(path)))

sys.addaudithook(hook)

def attempt(action):
    global watching
    watching = True
    try:
        action()
        answers["served"] += 1
    except WhippetError as error:
        answers["refused"] += 1
        lines.add(str(error).count("\\n"))
    finally:
        watching = False

def linked(path, name, action):
    kept, link = path.read_bytes() if path.exists() else None, path.with_name("link")
    try:
        link.symlink_to(name)
    except (OSError, ValueError):
        return 0  # no link can have this target
    link.replace(path)
    attempt(action)
    path.unlink()
    if kept is not None:
        path.write_bytes(kept)
    return 1

def rows():
    read = [row.value for row in read_rows(Source(str(data)))]
    assert read and all(value == {"text": "ours"} for value in read), read

links = 0
honest = index.read_text()
for name in names:
    file = name.removesuffix(".safetensors") + ".safetensors"  # no other is looked for
    index.write_text(json.dumps({"weight_map": dict(tensors, **{"lm_head.weight": file})}))
    attempt(lambda: load_decoder(model, device="cpu"))
    attempt(lambda: export(model, out=case / "out", device="cpu"))
index.unlink()  # else weights that a link within the folder does not lead to are had by way of the index
for name in names:
    links += linked(adapter / "adapter_model.safetensors", name, lambda: load_adapter(decoder, adapter))
    linked(adapter / "adapter_config.json", name, lambda: load_adapter(decoder, adapter))
    linked(data / "linked.jsonl", name, rows)
    linked(weights, name, lambda: load_decoder(model, device="cpu"))
    linked(weights, name, lambda: export(model, out=case / "out", device="cpu"))
    linked(model / "config.json", name, lambda: load_decoder(model, device="cpu"))
    linked(model / "tokenizer.json", name, lambda: Tokenizer.load(model))
index.write_text(honest)
print(json.dumps({"opened": opened, "links": links, "lines": sorted(lines), **answers}))
"""


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_300_hostile_names_reach_nothing(tmp_path: Path) -> None:
    good, case = write_checkpoint(tmp_path / "good"), tmp_path / "a" / "b" / "c" / "d"
    decoder, options = load_decoder(good, device="cpu"), LoraOptions(r=2)
    lora.attach(decoder, options, seed=0)
    case.mkdir(parents=True)
    save_adapter(decoder, options, case / "adapter", str(good))
    (case / "data").mkdir()
    (case / "data" / "ours.jsonl").write_text('{"text": "ours"}\n')
    model = Path(shutil.copytree(good, case / "model"))
    (model / "model.safetensors").rename(model / "ours.safetensors")
    tensors = load_file(model / "ours.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "ours.safetensors")})
    )
    names = hostile()
    (tmp_path / "names.json").write_text(json.dumps(names))
    for folder in (case, *case.parents[:4]):
        (folder / "x").write_bytes((model / "ours.safetensors").read_bytes())
        (folder / "x.safetensors").write_bytes((model / "ours.safetensors").read_bytes())
    before = files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(tmp_path), str(case)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["opened"] == []
    assert len(names) >= 300 and result["links"] >= 300
    assert result["lines"] == [0]
    assert result["refused"] > 2 * len(names)
    assert files(tmp_path) == before
