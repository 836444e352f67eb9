"""Write a random-weight Llama checkpoint of a real shape in Hugging Face layout, shard by shard.

usage: python benchmarks/random_checkpoint.py SHAPE OUT --tokenizer FOLDER [--template FILE.jinja]

SHAPE is 1b, 3b or 8b (the Llama 3.x shapes). FOLDER holds tokenizer.json or tokenizer.json.gz. Weights are normal
with standard deviation 0.02, drawn on the GPU if there is one; the same seed gives the same file on the same device.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from whippet.weights.hf import write_checkpoint

SHARED = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 128256,
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "attention_bias": False, "mlp_bias": False,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
}  # fmt: skip


def tensors(config: dict, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and bf16 tensor of each weight, in the order of the file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim

    def normal(rows: int, columns: int) -> torch.Tensor:
        drawn = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float32)
        return drawn.mul_(0.02).bfloat16().cpu()

    yield "model.embed_tokens.weight", normal(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", torch.ones(hidden, dtype=torch.bfloat16)
        for name, rows, columns in (("q", query, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, query)):
            yield f"{at}.self_attn.{name}_proj.weight", normal(rows, columns)
        yield f"{at}.post_attention_layernorm.weight", torch.ones(hidden, dtype=torch.bfloat16)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield f"{at}.mlp.{name}_proj.weight", normal(rows, columns)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", normal(config["vocab_size"], hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    config = SHARED | SHAPES[args.shape]
    write_checkpoint(args.out, tensors(config, args.seed), max_shard_bytes=4 * 10**9)
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    zipped = args.tokenizer / "tokenizer.json.gz"
    if zipped.exists():
        (args.out / "tokenizer.json").write_bytes(gzip.decompress(zipped.read_bytes()))
    else:
        shutil.copyfile(args.tokenizer / "tokenizer.json", args.out / "tokenizer.json")
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    (args.out / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )
    if args.template:
        shutil.copyfile(args.template, args.out / "chat_template.jinja")
    print(f"{args.out}: {args.shape} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
