"""Losses of 200 steps on real text: ours in NF4, bf16 and FP8, and those of transformers + peft + bitsandbytes.

usage: python benchmarks/curve.py CHECKPOINT RECORDS --result FILE.json [--steps 200] [--only nf4,nf4+fp8,bf16,fp8,hf]

All start from the same checkpoint and the same adapter and see the same examples in the same order, about 2,048 tokens
a step. Compute is bf16, the optimiser AdamW. Theirs is the plain loop, the documents of a step as one padded batch.
Prints the largest relative difference of a step's loss, of ``nf4`` against ``hf``, of ``nf4+fp8`` (products in FP8)
against ``nf4`` and of ``fp8`` against ``bf16``, and that of the last 20 steps' mean. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from whippet import lora
from whippet.bench.table import circumstances
from whippet.chat.render import make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data.batches import IGNORED, Batches, Step
from whippet.data.prepare import prepare
from whippet.options import DataOptions, LoraOptions, Source, TrainOptions
from whippet.train.learner import Learner
from whippet.train.limits import Limits
from whippet.train.objectives import sft
from whippet.train.optim import learning_rate, make_optimizer, trained_parameters
from whippet.weights.adapter import save_adapter
from whippet.weights.load import load_decoder

DEVICE = torch.device("cuda")
LORA = LoraOptions(r=16)
OPTIONS = TrainOptions(learning_rate=2e-4, schedule="cosine")
TOKENS_PER_STEP = 2048
LAST = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="nf4,nf4+fp8,bf16,fp8,hf")
    args = parser.parse_args()
    data = steps(args.checkpoint, args.records, args.steps)
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only.split(","):
            adapter = Path(folder) / "adapter"
            losses[name] = (
                theirs(args.checkpoint, data, adapter) if name == "hf" else ours(args.checkpoint, data, adapter, name)
            )
            print(f"{name}: {losses[name][0]:.4f} → {mean(losses[name]):.4f}", flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    told = {"command": " ".join(sys.argv)} | circumstances(DEVICE) | {"losses": losses, "differences": {}}
    for one, other in (("nf4", "hf"), ("nf4+fp8", "nf4"), ("fp8", "bf16")):
        if one in losses and other in losses:
            each = [abs(a - b) / b for a, b in zip(losses[one], losses[other], strict=True)]
            last = abs(mean(losses[one]) - mean(losses[other])) / mean(losses[other])
            told["differences"][f"{one} against {other}"] = {"largest": max(each), "last": last}
            print(f"{one} against {other}: at most {100 * max(each):.3f} %, at the end {100 * last:.3f} %")
    args.result.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def mean(losses: list[float]) -> float:
    """Of the last steps."""
    return sum(losses[-LAST:]) / len(losses[-LAST:])


def steps(checkpoint: Path, records: Path, count: int) -> list[Step]:
    renderer = make_renderer(Tokenizer.load(checkpoint), None)
    examples = prepare(
        DataOptions(sources=(Source(str(records)),), skip_bad=True), renderer, max_length=1024, seed=0
    ).train
    found = Batches(examples, tokens_per_step=TOKENS_PER_STEP, max_length=1024, seed=0).steps()
    return [next(found) for _ in range(count)]


def ours(checkpoint: Path, data: list[Step], adapter: Path, base: str) -> list[float]:
    held, _, compute = base.partition("+")
    decoder = load_decoder(checkpoint, base=held, compute=compute or "bf16", device="cuda")
    lora.attach(decoder, LORA, 0)
    if not adapter.exists():
        save_adapter(decoder, LORA, adapter, str(checkpoint))
    parameters = trained_parameters(decoder, "lora")
    limits = Limits(micro_tokens=2 * TOKENS_PER_STEP, recompute=0, chunk_rows=1024)
    optimizer = make_optimizer(parameters, OPTIONS)
    learner = Learner(decoder, parameters, optimizer, sft.loss, OPTIONS, limits, print)
    return [learner.learn(step, learning_rate(n, len(data), OPTIONS), n).loss for n, step in enumerate(data, start=1)]


def theirs(checkpoint: Path, data: list[Step], adapter: Path) -> list[float]:
    import peft
    import transformers

    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    base = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=quantised, dtype=torch.bfloat16, device_map={"": 0}
    )
    model = peft.PeftModel.from_pretrained(base, str(adapter), is_trainable=True, autocast_adapter_dtype=True).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (OPTIONS.beta1, OPTIONS.beta2)
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=betas, weight_decay=OPTIONS.weight_decay, fused=True)
    losses = []
    for number, step in enumerate(data, start=1):
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=DEVICE)
        for batch in step.batches:
            there = batch.to(DEVICE)
            borders = list(pairwise(batch.cu_seqlens.tolist()))
            ids, labels = (
                pad_sequence([row[start:stop] for start, stop in borders], batch_first=True, padding_value=filler)
                for row, filler in ((there.ids, 0), (there.labels, IGNORED))
            )
            lengths = torch.tensor([stop - start for start, stop in borders], device=DEVICE)
            mask = torch.arange(ids.shape[1], device=DEVICE) < lengths[:, None]
            with torch.autocast("cuda", dtype=torch.bfloat16):
                scores = model(input_ids=ids, attention_mask=mask.long()).logits
            loss = cross_entropy(scores.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
            (loss / step.weight_sum).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, OPTIONS.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(number, len(data), OPTIONS)
        optimizer.step()
        losses.append(float(total) / step.weight_sum)
    return losses


if __name__ == "__main__":
    main()
