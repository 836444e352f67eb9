"""Files that want to run: pickles under every name, and configurations that ask for code. All refused, nothing runs.

The figures are those of the project's reliability page: 500 hostile weight files, 1,000 fuzzed configurations, no
import from the folder, no process, no socket, an answer within a second each.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from whippet.errors import WhippetError
from whippet.weights.load import load_decoder

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64, "hidden_act": "silu",
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "float32",
    "tie_word_embeddings": True,
}  # fmt: skip
NAMES = (
    "pytorch_model.bin", "model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt", "consolidated.00.pth",
    "model.safetensors", "model-00001-of-00001.safetensors", "adapter_model.bin",
)  # fmt: skip


class Payload:
    """Unpickling an instance creates the canary file."""

    def __init__(self, canary: Path, how: int) -> None:
        self.canary, self.how = canary, how

    def __reduce__(self) -> tuple:
        ways = (
            (os.mkdir, (str(self.canary),)),
            (open, (str(self.canary), "w")),
            (os.system, (f"touch {self.canary}",)),
            (subprocess.call, (["touch", str(self.canary)],)),
            (eval, (f"open({str(self.canary)!r}, 'w')",)),
        )
        return ways[self.how % len(ways)]


def bodies(canary: Path) -> Iterator[bytes]:
    """Fifty hostile contents: pickles of each protocol, zips, archives, gzip, torch files, disguises."""
    for how, protocol in itertools.product(range(5), range(6)):
        yield pickle.dumps({"model.norm.weight": Payload(canary, how)}, protocol=protocol)
    for how in range(5):
        pickled = pickle.dumps(Payload(canary, how))
        saved = io.BytesIO()
        torch.save({"w": torch.zeros(2), "x": Payload(canary, how)}, saved)
        yield saved.getvalue()
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
        yield zipped.getvalue()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            info = tarfile.TarInfo("data.pkl")
            info.size = len(pickled)
            archive.addfile(info, io.BytesIO(pickled))
        yield packed.getvalue()
        header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
        yield len(header).to_bytes(8, "little") + header + pickled


def folder_with(tmp_path: Path, name: str, body: bytes, config: dict | None = None) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / name).write_bytes(body)
    if name.startswith("model-"):
        index = {"metadata": {"total_size": len(body)}, "weight_map": {"model.norm.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_500_hostile_weight_files(tmp_path: Path) -> None:
    canary, count = tmp_path / "canary", 0
    hostile = [*bodies(canary)]
    assert len(hostile) == 50
    for number, (name, body) in enumerate(itertools.product(NAMES, hostile)):
        place = tmp_path / str(number)
        place.mkdir()
        folder = folder_with(place, name, body)
        with pytest.raises(WhippetError) as caught:
            load_decoder(folder, base="fp32", compute="fp32", device="cpu")
        assert "\n" not in str(caught.value)
        count += 1
    assert count == 500
    assert not canary.exists()


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """The canary does sing when something does unpickle: else the test above could not fail."""
    for how in range(5):
        canary = tmp_path / f"canary-{how}"
        loaded = pickle.loads(pickle.dumps(Payload(canary, how)))
        if hasattr(loaded, "close"):
            loaded.close()
        assert canary.exists()


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_a_gzipped_pickle_is_not_opened(tmp_path: Path, suffix: str) -> None:
    body = gzip.compress(pickle.dumps(Payload(tmp_path / "canary", 0)))
    with pytest.raises(WhippetError):
        load_decoder(
            folder_with(tmp_path, f"model.safetensors{suffix}", body), base="fp32", compute="fp32", device="cpu"
        )
    assert not (tmp_path / "canary").exists()


FUZZ = """
import json, random, sys, time
from pathlib import Path
import torch
from whippet.chat.render import make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import WhippetError
from whippet.weights.load import load_decoder

place, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
seen = []

def hook(event, args):
    if event in (
        "socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"
    ):
        seen.append((event, str(args)[:200]))
    if event == "import" and args[1] and str(place) in str(args[1]):
        seen.append((event, str(args)[:200]))
    if event == "exec" and str(place) in str(getattr(args[0], "co_filename", "")):
        seen.append((event, str(args)[:200]))

def warm():
    try:
        load_decoder(place / "good", base="fp32", compute="fp32", device="cpu")
        make_renderer(Tokenizer.load(place / "good"), None)
    except WhippetError:
        pass

warm()
sys.addaudithook(hook)
configs = json.loads((place / "configs.json").read_text())
slowest = 0.0
outcomes = {"refused": 0, "loaded": 0}
for config, tokenizer_config in configs[:count]:
    folder = place / "case"
    (folder / "config.json").write_text(config)
    (folder / "tokenizer_config.json").write_text(tokenizer_config)
    start = time.perf_counter()
    for action in (
        lambda: load_decoder(folder, base="fp32", compute="fp32", device="cpu"),
        lambda: make_renderer(Tokenizer.load(folder), None),
    ):
        try:
            action()
            outcomes["loaded"] += 1
        except WhippetError:
            outcomes["refused"] += 1
    slowest = max(slowest, time.perf_counter() - start)
print(json.dumps({"seen": seen, "slowest": slowest, **outcomes}))
"""

ODD_VALUES = [
    None, True, -1, 0, 1, 1.5, 10**12, 2**63, 1e400, "", "x", "../../x", "evil.py", "__import__('os')", [], {}, [[]],
    {"a": {"b": {}}}, ["evil.py"], "evil--modeling.EvilForCausalLM", "\ud83d", "a" * 10_000, -(2**70), "0x10", "nan",
]  # fmt: skip
CODE_KEYS = {
    "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil--evil.Evil"},
    "_attn_implementation_internal": "evil/kernels:attention", "_attn_implementation": "evil/kernels",
    "model_file": "evil.py", "custom_pipelines": {"x": {"impl": "evil.Evil"}}, "tokenizer_class": "EvilTokenizer",
    "trust_remote_code": True, "quantization_config": {"quant_method": "evil"}, "attn_implementation": "evil",
    "architectures": ["EvilForCausalLM"], "model_type": "../evil", "hidden_act": "evil.f", "torch_dtype": "os.system",
    "rope_scaling": {"rope_type": "evil", "factor": "x"}, "chat_template": "{{ ''.__class__.__mro__ }}",
    "tokenizer_file": "/etc/passwd", "processor_class": "Evil", "auto_class": "evil.Evil", "name_or_path": "http://evil",
}  # fmt: skip


def fuzzed(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of config.json and tokenizer_config.json texts: odd values, hostile keys, broken JSON."""
    draw = random.Random(seed)
    tokenizer = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    pairs = []
    for _ in range(count):
        one, two = dict(CONFIG), dict(tokenizer)
        for table in (one, two):
            for _ in range(draw.randint(1, 3)):
                if draw.random() < 0.5:
                    key = draw.choice([*CODE_KEYS])
                    table[key] = CODE_KEYS[key]
                else:
                    table[draw.choice([*table, "new_key"])] = draw.choice(ODD_VALUES)
        texts = [json.dumps(one), json.dumps(two)]
        if draw.random() < 0.2:
            which = draw.randrange(2)
            cut = draw.randrange(len(texts[which]))
            texts[which] = texts[which][:cut] + draw.choice(["", "\x00", "}" * 5, "[" * 3000, "\ufeff"])
        pairs.append((texts[0], texts[1]))
    return pairs


def test_1000_fuzzed_configurations(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "configs.json").write_text(json.dumps(fuzzed(1000, seed=1)))
    for name in ("case", "good"):
        place = tmp_path / name
        place.mkdir()
        for item in tiny_checkpoint.iterdir():
            (place / item.name).write_bytes(item.read_bytes())
        (place / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path), "1", "1000"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["seen"] == []
    assert result["slowest"] < 1.0
    assert result["refused"] > 500
    assert not (tmp_path / "canary").exists()
