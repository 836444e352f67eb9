"""Write a random-weight checkpoint of a real shape in Hugging Face layout, shard by shard.

usage: python benchmarks/random_checkpoint.py SHAPE OUT --tokenizer FOLDER [--template FILE.jinja] [--nf4]

SHAPE is one that `whippet bench` measures (8b, 3b, 1b, 70b, qwen-7b, gemma-9b, mistral-7b, phi-4b). FOLDER holds
tokenizer.json or tokenizer.json.gz, and tokenizer_config.json unless it is Llama 3's. Weights are normal with
standard deviation 0.02, drawn on the GPU if there is one; the same seed gives the same file on the same device. --nf4
writes the layers' matrices in 4 bit with double quantisation, as bitsandbytes lays them out.
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

from whippet.bench.settings import SHAPES
from whippet.kernels.nf4 import quantize_nf4
from whippet.model.config import ModelConfig
from whippet.model.families import config_to_hf
from whippet.weights.bnb_write import nf4_tensors
from whippet.weights.hf import write_checkpoint
from whippet.weights.names import table

LLAMA_3 = {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]}
LLAMA_3_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
    "pad_token": "<|finetune_right_pad_id|>",
}  # fmt: skip
QUANTISATION = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
}  # fmt: skip


def tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Name and bf16 tensor of each weight, in the order of the model, and whether it may be held in 4 bit."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    for entry in table(config):
        for part in entry.parts:
            if len(part.shape) == 1:
                # Biases; and norms' scales, which some families hold less one.
                fill = 0.0 if part.name.endswith(".bias") or config.unit_offset else 1.0
                yield part.name, torch.full(part.shape, fill, dtype=torch.bfloat16), False
                continue
            drawn = torch.randn(*part.shape, generator=generator, device=device, dtype=torch.float32)
            yield part.name, drawn.mul_(0.02).bfloat16(), entry.quantisable


def laid_out(named: Iterator[tuple[str, torch.Tensor, bool]], *, in_nf4: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """What the file holds: with ``in_nf4`` the layers' matrices each as the tensors that bitsandbytes writes for it."""
    for name, weight, quantisable in named:
        if not in_nf4 or not quantisable:
            yield name, weight
            continue
        yield from nf4_tensors(name, quantize_nf4(weight))


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
    config = SHAPES[args.shape]
    told = config_to_hf(config, dtype="bfloat16", extra=LLAMA_3 if config.family == "llama" else None)
    if args.nf4:
        told["quantization_config"] = QUANTISATION
    named = laid_out(tensors(config, args.seed), in_nf4=args.nf4)
    write_checkpoint(args.out, ((name, tensor.cpu()) for name, tensor in named), max_shard_bytes=4 * 10**9)
    (args.out / "config.json").write_text(json.dumps(told, indent=2))
    zipped, about = args.tokenizer / "tokenizer.json.gz", args.tokenizer / "tokenizer_config.json"
    if zipped.exists():
        (args.out / "tokenizer.json").write_bytes(gzip.decompress(zipped.read_bytes()))
    else:
        shutil.copyfile(args.tokenizer / "tokenizer.json", args.out / "tokenizer.json")
    if about.exists():
        shutil.copyfile(about, args.out / about.name)
    else:
        (args.out / about.name).write_text(json.dumps(LLAMA_3_TOKENIZER))
    if args.template:
        shutil.copyfile(args.template, args.out / "chat_template.jinja")
    print(f"{args.out}: {args.shape} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
