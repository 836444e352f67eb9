"""Meta's original layout: read as Meta's own code computes, written back with its bytes, and what is refused.

The reference is written here from the published description (interleaved complex rotation), not taken from the package.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_meta import PARAMS, Weights, cut, random_weights, write
from helpers_models import logits
from torch import Tensor

from whippet.errors import ModelError, UsageError
from whippet.weights.hf import write_checkpoint
from whippet.weights.load import load_decoder, open_meta, read_config
from whippet.weights.merge import merged_tensors
from whippet.weights.meta_write import write_meta

IDS = torch.randint(0, 96, (30,), generator=torch.Generator().manual_seed(0))


def theirs(params: dict[str, Any], weights: Weights, factor: float) -> Tensor:
    """Logits as Meta's code computes them: pairs of neighbours are turned as complex numbers."""
    w = {name: tensor.float() for name, tensor in weights.items()}
    heads, kv_heads, head = params["n_heads"], params["n_kv_heads"], params["dim"] // params["n_heads"]
    frequencies = 1.0 / params["rope_theta"] ** (torch.arange(0, head, 2).float() / head)
    if params["use_scaled_rope"]:
        wavelengths = 2 * torch.pi / frequencies
        smooth = ((8192 / wavelengths - 1) / (4 - 1)).clamp(0, 1)
        frequencies = (1 - smooth) * frequencies / factor + smooth * frequencies
    turns = torch.outer(torch.arange(len(IDS)).float(), frequencies)
    turns = torch.polar(torch.ones_like(turns), turns)[:, None]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + params["norm_eps"]) * weight

    def turned(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    x = w["tok_embeddings.weight"][IDS]
    for layer in range(params["n_layers"]):
        at = f"layers.{layer}."
        normed = norm(x, w[at + "attention_norm.weight"])
        q = turned((normed @ w[at + "attention.wq.weight"].T).unflatten(-1, (heads, head)))
        k = turned((normed @ w[at + "attention.wk.weight"].T).unflatten(-1, (kv_heads, head)))
        v = (normed @ w[at + "attention.wv.weight"].T).unflatten(-1, (kv_heads, head))
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / head**0.5
        scores = scores.masked_fill(torch.ones(len(IDS), len(IDS)).triu(1).bool(), -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + out @ w[at + "attention.wo.weight"].T
        normed = norm(x, w[at + "ffn_norm.weight"])
        gate, up = (normed @ w[at + f"feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ w[at + "feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


@pytest.mark.parametrize(
    ("ranks", "columns", "tied"),
    [(1, False, False), (2, True, False), (2, False, True), (4, False, False)],
    ids=["whole", "llama-2", "tied", "more-ranks-than-kv-heads"],
)
def test_meta_to_ours_to_meta(ranks: int, columns: bool, tied: bool, tmp_path: Path) -> None:
    weights = random_weights(PARAMS)
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"].clone()
    shards = cut(weights, ranks, columns=columns, kv_heads=2)
    extra = {"rope.freqs": torch.ones(8)} if columns else {}
    folder = write(tmp_path / "meta", PARAMS, [shard | extra for shard in shards])
    decoder = load_decoder(folder, base="fp32", device="cpu", layout="meta")
    wanted = theirs(PARAMS, weights, 32.0 if tied else 8.0)
    assert (logits(decoder, IDS) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert decoder.config.tie_embeddings is tied
    written = write_meta(tmp_path / "again", decoder, ranks=ranks, by_rows=not columns)
    assert [path.name for path in written] == [f"consolidated.{rank:02d}.pth" for rank in range(ranks)]
    for path, shard in zip(written, shards, strict=True):
        back = torch.load(path, weights_only=True)
        assert back.keys() == shard.keys()
        for name, tensor in shard.items():
            assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    with open_meta(tmp_path / "again") as reader:
        assert reader.config == decoder.config


def test_the_same_through_hugging_faces_layout(tmp_path: Path) -> None:
    folder = write(tmp_path / "meta", PARAMS, cut(random_weights(PARAMS), 2, columns=False, kv_heads=2))
    meta = load_decoder(folder, base="fp32", device="cpu", layout="meta")
    (tmp_path / "hf").mkdir()
    write_checkpoint(tmp_path / "hf", merged_tensors(meta, torch.bfloat16))
    from whippet.model.families import config_to_hf

    (tmp_path / "hf" / "config.json").write_text(json.dumps(config_to_hf(meta.config, dtype="bfloat16")))
    assert torch.equal(logits(load_decoder(tmp_path / "hf", base="fp32", device="cpu"), IDS), logits(meta, IDS))
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(IDS[None]).logits[0]
    assert (logits(meta, IDS) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("params", "sizes", "scaling", "context"),
    [
        # Llama 1 7B, 2 70B, 3 8B, 3.1 405B, 3.2 1B: what their files say, and what Hugging Face's configs have.
        ({"dim": 4096, "n_heads": 32, "norm_eps": 1e-6}, (11008, 32), None, 2048),
        ({"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, (28672, 8),
         None, 4096),
        ({"dim": 4096, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3,
          "rope_theta": 5e5, "vocab_size": 128256}, (14336, 8), None, 8192),
        ({"dim": 16384, "n_heads": 128, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.2,
          "rope_theta": 5e5, "vocab_size": 128256, "use_scaled_rope": True}, (53248, 8), 8.0, 131072),
        ({"dim": 2048, "n_heads": 32, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.5,
          "rope_theta": 5e5, "vocab_size": 128256, "use_scaled_rope": True}, (8192, 8), 32.0, 131072),
    ],
)  # fmt: skip
def test_parameters_of_the_published_models(
    params: dict[str, Any], sizes: tuple[int, int], scaling: float | None, context: int, tmp_path: Path
) -> None:
    from whippet.weights.header import TensorInfo
    from whippet.weights.meta_params import config_from_params, params_of, read_params

    path = tmp_path / "params.json"
    path.write_text(json.dumps({"n_layers": 2, "multiple_of": 256, "vocab_size": -1} | params))
    words = params.get("vocab_size", 32000)
    embedding = {"model.embed_tokens.weight": TensorInfo("BF16", (words, params["dim"]), 0)}
    tied = params["dim"] == 2048
    config = config_from_params(read_params(path), embedding, tied=tied, where="params.json")
    assert (config.intermediate_size, config.num_kv_heads) == sizes
    assert config.context == context
    assert (config.rope_scaling.factor if config.rope_scaling else None) == scaling
    path.write_text(json.dumps(params_of(config)))
    assert config_from_params(read_params(path), embedding, tied=tied, where="params.json") == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": "64"}, "dim is 64, and must be a whole number"),
        ({"n_heads": 5}, "dim 64 is no multiple of n_heads 5"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
        ({"vocab_size": 95}, "vocab_size is 95, and tok_embeddings has 96 rows"),
        ({"ffn_dim_multiplier": 2.6}, r"gate_proj.weight has shape \[224, 64\], and the config wants"),
        ({"n_layers": 3}, "tensors are missing"),
        ({"vision_chunk_size": 560}, "unknown key 'vision_chunk_size'"),
    ],
)
def test_parameters_that_do_not_fit_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path, PARAMS | change, cut(random_weights(PARAMS), 1, columns=False, kv_heads=2))
    with pytest.raises(ModelError, match=said):
        load_decoder(folder, device="cpu", layout="meta")


def test_ranks_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(ModelError, match=said):
            load_decoder(tmp_path, device="cpu", layout="meta")

    shards = cut(random_weights(PARAMS), 2, columns=False, kv_heads=2)
    shards[1]["norm.weight"] = shards[1]["norm.weight"] + 1
    write(tmp_path, PARAMS, shards)
    refused("'norm.weight' differs between ranks")
    write(tmp_path, PARAMS, [shards[0], shards[1] | {"more.weight": torch.ones(1)}])
    refused("'more.weight' is not in consolidated.00.pth")
    del shards[1]["norm.weight"]
    write(tmp_path, PARAMS, shards)
    refused("'norm.weight' is not in every")
    (tmp_path / "consolidated.00.pth").unlink()
    refused("consolidated.00.pth is missing, though consolidated.01.pth is there")


def test_archives_are_opened_for_who_asks_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, PARAMS, cut(random_weights(PARAMS), 1, columns=False, kv_heads=2))
    for read in (load_decoder, read_config):
        with pytest.raises(ModelError, match=f"Meta's original layout; run: whippet convert {folder} --out DIR"):
            read(folder)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (open, (str(self.canary), "w"))


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/version", "3\n")
    return made.getvalue()


def test_archives_that_hold_more_than_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from whippet.weights import meta

    canary, saved = tmp_path / "canary", io.BytesIO()
    torch.save({"w": torch.ones(2), "x": Payload(canary)}, saved)
    legacy, strange = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
    torch.save({"w": [torch.ones(2)]}, strange)
    wide = io.BytesIO()
    torch.save({"w": torch.ones(1).expand(2**40)}, wide)
    hostile = {
        "asks for": [saved.getvalue(), *(archive(pickle.dumps(Payload(canary), protocol=p)) for p in range(6))],
        "no archive as torch writes them": [legacy.getvalue(), pickle.dumps(Payload(canary)), b"PK\x03\x04", b""],
        "compressed": [archive(pickle.dumps({}), zipfile.ZIP_DEFLATED)],
        "damaged": [archive(b"\x80\x02}q\x00("), archive(b"")],
        "is no plain tensor": [strange.getvalue()],
        "holds a list": [archive(pickle.dumps([], protocol=2))],
        "claims more numbers": [wide.getvalue()],
    }
    for said, bodies in hostile.items():
        for body in bodies:
            folder = write(tmp_path / "model", PARAMS, [])
            (folder / "consolidated.00.pth").write_bytes(body)
            with pytest.raises(ModelError, match=said) as caught:
                load_decoder(folder, device="cpu", layout="meta")
            assert "\n" not in str(caught.value)
    # torch's own guard stands behind ours.
    monkeypatch.setattr(meta, "_check_archive", lambda path: None)
    (tmp_path / "model" / "consolidated.00.pth").write_bytes(saved.getvalue())
    with pytest.raises(ModelError, match="cannot be read as an archive of tensors"):
        load_decoder(tmp_path / "model", device="cpu", layout="meta")
    assert not canary.exists()


def test_what_the_layout_cannot_hold_is_not_written(tmp_path: Path) -> None:
    from helpers_models import TINY, random_decoder

    from whippet.model.config import ModelConfig

    for change, ranks, said in (
        ({"qkv_bias": True}, 1, "without biases"), ({"head_dim": 32}, 1, "heads of hidden_size / num_heads"),
        ({}, 3, "3 ranks cannot share"),
    ):  # fmt: skip
        decoder = random_decoder(ModelConfig(**(vars(TINY) | change)))
        with pytest.raises(UsageError, match=said):
            write_meta(tmp_path / "out", decoder, ranks=ranks)
