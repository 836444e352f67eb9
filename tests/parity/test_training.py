"""A whole training equals that of transformers + peft + bitsandbytes: the same checkpoint, adapter, data and order.

Theirs is the plain loop: each document by itself, weights in bitsandbytes' 4 bit, torch's AdamW, the loss summed over
trained tokens and divided once a step. Ours is what ``whippet finetune`` runs: packed, stacked, chunked. The embedded
model learns the records of the demonstration, in fp32 on the CPU.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from whippet import lora
from whippet.chat.render import make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data.batches import IGNORED, Batches, Step
from whippet.data.prepare import prepare
from whippet.data.store import ExampleStore
from whippet.demo import MODEL, TRAIN
from whippet.options import DataOptions, LoraOptions, Source, TrainOptions
from whippet.train.learner import Learner
from whippet.train.limits import Limits
from whippet.train.objectives import sft
from whippet.train.optim import learning_rate, make_optimizer, trained_parameters
from whippet.weights.adapter import save_adapter
from whippet.weights.load import load_decoder

TOKENS_PER_STEP = 320
LORA = LoraOptions(r=8, alpha=16.0)
OPTIONS = TrainOptions(learning_rate=1e-3, schedule="cosine", clip=1.0)
AT_ONCE, AFTER_200_STEPS = 1e-5, 0.005
"""Largest relative difference of a step's loss: of the first steps, and what the project promises after many, when
differences in rounding have grown."""


def steps(count: int) -> list[Step]:
    renderer = make_renderer(Tokenizer.load(MODEL), None)
    data = DataOptions(sources=(Source(str(TRAIN)),))
    examples = prepare(data, renderer, max_length=512, seed=0).train
    assert isinstance(examples, ExampleStore)
    found = Batches(examples, tokens_per_step=TOKENS_PER_STEP, max_length=512, seed=0).steps()
    return [next(found) for _ in range(count)]


def ours(data: list[Step], adapter: Path) -> list[float]:
    """Losses of our steps; the untrained adapter is left in ``adapter``."""
    decoder = load_decoder(MODEL, base="nf4", compute="fp32", device="cpu")
    lora.attach(decoder, LORA, 0)
    save_adapter(decoder, LORA, adapter, str(MODEL))
    parameters = trained_parameters(decoder, "lora")
    optimizer = make_optimizer(parameters, OPTIONS)
    limits = Limits(micro_tokens=200, recompute=3, chunk_rows=50)
    learner = Learner(decoder, parameters, optimizer, sft.loss, OPTIONS, limits, print)
    total = len(data)
    return [learner.learn(step, learning_rate(n, total, OPTIONS), n).loss for n, step in enumerate(data, start=1)]


def theirs(data: list[Step], adapter: Path) -> list[float]:
    import peft
    import transformers

    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    base = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL, quantization_config=quantised, dtype=torch.float32, device_map={"": "cpu"}
    )
    for module in base.modules():
        # It would round its weights to the dtype that the checkpoint has before it computes in fp32.
        if hasattr(module, "quant_state"):
            module.weight.quant_state.dtype = torch.float32
    model = peft.PeftModel.from_pretrained(base, str(adapter), is_trainable=True).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (OPTIONS.beta1, OPTIONS.beta2)
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=betas, weight_decay=OPTIONS.weight_decay)
    losses = []
    for number, step in enumerate(data, start=1):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in step.batches:
            borders = batch.cu_seqlens.tolist()
            for start, stop in pairwise(borders):
                scores = model(input_ids=batch.ids[None, start:stop]).logits[0]
                loss = cross_entropy(scores, batch.labels[start:stop], ignore_index=IGNORED, reduction="sum")
                (loss / step.weight_sum).backward()
                total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, OPTIONS.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(number, len(data), OPTIONS)
        optimizer.step()
        losses.append(total / step.weight_sum)
    return losses


def compare(count: int, allowed: float, folder: Path) -> None:
    data = steps(count)
    met, wanted = ours(data, folder / "adapter"), theirs(data, folder / "adapter")
    assert met[-1] < 0.7 * met[0]
    differences = [abs(one - other) / other for one, other in zip(met, wanted, strict=True)]
    assert max(differences) <= allowed, (max(differences), differences.index(max(differences)))


def test_the_first_steps_equal_those_of_the_plain_loop(tmp_path: Path) -> None:
    compare(6, AT_ONCE, tmp_path)


@pytest.mark.long
def test_200_steps_equal_those_of_the_plain_loop(tmp_path: Path) -> None:
    compare(200, AFTER_200_STEPS, tmp_path)
