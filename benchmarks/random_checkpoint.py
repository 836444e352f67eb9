"""Write a random-weight Llama checkpoint of a real shape in Hugging Face layout, shard by shard.

usage: python benchmarks/random_checkpoint.py SHAPE OUT --tokenizer FOLDER [--template FILE.jinja] [--nf4]

SHAPE is 1b, 3b, 8b or 70b (the Llama 3.x shapes). FOLDER holds tokenizer.json or tokenizer.json.gz. Weights are normal
with standard deviation 0.02, drawn on the GPU if there is one; the same seed gives the same file on the same device.
--nf4 writes the layers' matrices in 4 bit with double quantisation, as bitsandbytes lays them out.
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

from whippet.kernels.nf4 import NF4_CODE, quantize_nf4
from whippet.kernels.nf4_rounding import BLOCK, NESTED_BLOCK
from whippet.weights.bnb import STATE
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
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
}  # fmt: skip
QUANTISATION = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
}  # fmt: skip


def tensors(config: dict, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and bf16 tensor of each weight, in the order of the file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim

    def normal(rows: int, columns: int) -> torch.Tensor:
        drawn = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float32)
        return drawn.mul_(0.02).bfloat16()

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


def quantised(named: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same with the layers' matrices in NF4, each as the tensors that bitsandbytes writes for it."""
    for name, weight in named:
        if not name.endswith("_proj.weight"):
            yield name, weight
            continue
        nf4 = quantize_nf4(weight)
        assert nf4.nested_absmax is not None and nf4.nested_code is not None and nf4.offset is not None
        state = {
            "quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(nf4.shape),
            "nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(nf4.offset),
        }  # fmt: skip
        yield name, nf4.codes.view(-1, 1)
        yield f"{name}.absmax", nf4.absmax
        yield f"{name}.quant_map", torch.tensor(NF4_CODE, dtype=torch.float32)
        yield f"{name}.nested_absmax", nf4.nested_absmax
        yield f"{name}.nested_quant_map", nf4.nested_code.clone()  # one for all, which a file may not hold
        yield f"{name}{STATE}", torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nf4", action="store_true")
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    config = SHARED | SHAPES[args.shape]
    named = tensors(config, args.seed)
    if args.nf4:
        config, named = config | {"quantization_config": QUANTISATION}, quantised(named)
    write_checkpoint(args.out, ((name, tensor.cpu()) for name, tensor in named), max_shard_bytes=4 * 10**9)
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
