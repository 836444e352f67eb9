"""Steps of another trainer, timed: what ``whippet bench`` runs beside its own.

usage: python benchmarks/peer.py unsloth|hf CHECKPOINT [--docs 2 --length 2048] [--checkpointing unsloth|on|off]
       python benchmarks/peer.py unsloth|hf CHECKPOINT --texts FILE.jsonl [--packing]

QLoRA over NF4 with AdamW in 8 bit. The first form learns from random tokens, each of them supervised, without padding,
and gives tokens/s; the second gives FILE's texts to TRL's SFTTrainer, batch 2 × accumulation 4, and gives examples/s.
``hf`` is transformers with peft and bitsandbytes. The last line of the output is one JSON object, seconds and bytes in
it. ``peak`` is that of the steps after warm-up, ``peak_all`` that of all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH, ACCUMULATION, MAX_LENGTH = 2, 4, 2048
RATE, SEED = 2e-4, 0
PACKAGES = ("unsloth", "unsloth_zoo", "transformers", "peft", "trl", "bitsandbytes", "torch", "triton", "xformers")


def main() -> None:
    args = arguments()
    began = time.perf_counter()
    load = import_unsloth(args) if args.peer == "unsloth" else import_hf(args)
    imported_at = time.time()
    import_s = time.perf_counter() - began
    model, tokenizer = load()
    load_s = time.perf_counter() - began - import_s
    weights = memory("memory_allocated", args.device)
    found = learn_texts(args, model, tokenizer) if args.texts else learn_random(args, model)
    told = {
        "peer": args.peer,
        "checkpointing": args.checkpointing,
        "rank": args.rank,
        "import_s": import_s,
        "load_s": load_s,
        "imported_at": imported_at,
        "weights": weights,
        "reserved": memory("max_memory_reserved", args.device),
        "versions": versions(args.peer),
    }
    print(json.dumps(told | found), flush=True)


def import_unsloth(args: argparse.Namespace) -> Callable[[], tuple[Any, Any]]:
    """Import it, before transformers as it asks for; returns what loads the model."""
    from unsloth import FastLanguageModel

    def load() -> tuple[Any, Any]:
        length = MAX_LENGTH if args.texts else args.length
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(args.checkpoint), max_seq_length=length, load_in_4bit=True, dtype=compute(args.device)
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=args.rank,
            lora_alpha=16,
            lora_dropout=0,
            bias="none",
            target_modules=TARGETS,
            use_gradient_checkpointing={"unsloth": "unsloth", "on": True, "off": False}[args.checkpointing],
            max_seq_length=length,
            random_state=SEED,
        )
        if not args.texts:
            FastLanguageModel.for_training(model)
        return model, tokenizer

    return load


def import_hf(args: argparse.Namespace) -> Callable[[], tuple[Any, Any]]:
    """transformers, peft and bitsandbytes as their own pages use them."""
    import bitsandbytes  # noqa: F401
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    def load() -> tuple[Any, Any]:
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute(args.device),
        )
        quantised = "quantization_config" in json.loads((args.checkpoint / "config.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(
            str(args.checkpoint),
            **({} if quantised else {"quantization_config": four_bit}),
            dtype=compute(args.device),
            device_map={"": 0 if args.device == "cuda" else "cpu"},
            attn_implementation="sdpa",
        )
        tokenizer = AutoTokenizer.from_pretrained(str(args.checkpoint))
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=args.checkpointing != "off",
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
        return get_peft_model(model, lora_config(args.rank)).train(), tokenizer

    return load


def lora_config(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")


def learn_random(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Steps of ``docs`` rows of ``length`` random tokens."""
    import torch

    optimizer = make_optimizer([one for one in model.parameters() if one.requires_grad], args.device)
    draw = torch.Generator().manual_seed(SEED)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    watch = Watch(args.device, args.warmup)
    loss = None
    for _ in range(args.warmup + args.steps):
        ids = torch.randint(0, vocabulary, (args.docs, args.length), generator=draw).to(args.device)
        watch.start()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.device == "cuda"):
            loss = model(input_ids=ids, labels=ids, attention_mask=None).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.stop()
    tokens = args.docs * args.length
    timed = watch.timed()
    return watch.figures() | {
        "value": tokens / statistics.median(timed),
        "unit": "tokens/s",
        "docs": args.docs,
        "length": args.length,
        "loss": None if loss is None else float(loss.detach()),
    }


def learn_texts(args: argparse.Namespace, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Steps of TRL's trainer on real texts."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    watch = Watch(args.device, args.warmup)

    class Timing(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.stop()

    texts = read_texts(args.texts, tokenizer)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"text": text} for text in texts]),
        callbacks=[Timing()],
        args=SFTConfig(
            output_dir="trained",
            dataset_text_field="text",
            max_length=MAX_LENGTH,
            packing=args.packing,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATION,
            gradient_checkpointing=args.checkpointing != "off",
            max_steps=args.warmup + args.steps,
            learning_rate=RATE,
            optim="adamw_8bit" if args.device == "cuda" else "adamw_torch",
            bf16=args.device == "cuda",
            **({"use_cpu": True} if args.device == "cpu" else {}),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=SEED,
        ),
    )
    trainer.train()
    timed = watch.timed()
    looked_at = texts[:1000]
    mean_tokens = sum(map(len, tokenizer(looked_at)["input_ids"])) / len(looked_at)
    # Packed, the trainer's rows are packs: each holds so many texts.
    texts_a_row = len(texts) / len(trainer.train_dataset)
    examples = BATCH * ACCUMULATION * texts_a_row
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return watch.figures() | {
        "value": examples * len(timed) / sum(timed),
        "unit": "examples/s",
        "packing": args.packing,
        "examples_per_step": examples,
        "mean_tokens": mean_tokens,
        "loss": losses[-1] if losses else None,
    }


class Watch:
    """Times of steps, each waited for, and the peaks of memory."""

    def __init__(self, device: str, warmup: int) -> None:
        self.device, self.warmup = device, warmup
        self.seconds: list[float] = []
        self.first_step_at: float | None = None
        self._warmup_peak = 0
        self._began = 0.0

    def start(self) -> None:
        if not self.seconds:
            forget_peaks(self.device)
        wait(self.device)
        self._began = time.perf_counter()

    def stop(self) -> None:
        wait(self.device)
        self.seconds.append(time.perf_counter() - self._began)
        if len(self.seconds) == 1:
            self.first_step_at = time.time()
        if len(self.seconds) == self.warmup:
            self._warmup_peak = memory("max_memory_allocated", self.device) or 0
            forget_peaks(self.device)

    def timed(self) -> list[float]:
        return self.seconds[self.warmup :]

    def figures(self) -> dict[str, Any]:
        timed, peak = self.timed(), memory("max_memory_allocated", self.device)
        return {
            "step_s": statistics.median(timed),
            "fastest_s": min(timed),
            "slowest_s": max(timed),
            "first_step_s": self.seconds[0],
            "first_step_at": self.first_step_at,
            "steps": len(timed),
            "warmup": self.warmup,
            "peak": peak,
            "peak_all": None if peak is None else max(peak, self._warmup_peak),
        }


def read_texts(path: Path, tokenizer: Any) -> list[str]:
    """The texts, without the first token that this tokenizer puts before them itself."""
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    first = tokenizer("a")["input_ids"][0]
    bos = tokenizer.bos_token
    return [text.removeprefix(bos) for text in texts] if bos and first == tokenizer.bos_token_id else texts


def make_optimizer(parameters: list[Any], device: str) -> Any:
    import torch

    if device == "cpu":
        return torch.optim.AdamW(parameters, lr=RATE)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, lr=RATE)


def compute(device: str) -> Any:
    import torch

    return torch.bfloat16 if device == "cuda" else torch.float32


def wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def forget_peaks(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def memory(which: str, device: str) -> int | None:
    """What ``torch.cuda`` counts under that name."""
    import torch

    return getattr(torch.cuda, which)() if device == "cuda" else None


def versions(peer: str) -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if peer == "hf":
        found["hf"] = f"(transformers {found.get('transformers')}, peft {found.get('peft')})"
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=("unsloth", "hf"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--docs", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--checkpointing", choices=("unsloth", "on", "off"), default="on")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
