"""What a model needs at least is what the planner would grant it."""

from __future__ import annotations

from whippet.model.known import known
from whippet.options import LoraOptions
from whippet.train.choose import choose_limits
from whippet.train.memory import Workload, peak_bytes
from whippet.train.needs import TOKENS, needs

GIB = 2**30
LLAMA_8B = known("meta-llama/Llama-3.1-8B-Instruct")


def test_the_least_is_what_a_plan_with_that_budget_takes() -> None:
    least = needs(LLAMA_8B).qlora
    work = Workload(LLAMA_8B, "nf4", 2, LoraOptions(), "adamw", "cuda", TOKENS, TOKENS, 1.0)
    limits = choose_limits(work, least, host=2**40)
    assert limits.micro_tokens == TOKENS and peak_bytes(work, limits) <= least


def test_ways_of_training_and_talking_are_in_their_order() -> None:
    found = needs(LLAMA_8B)
    assert 5 * GIB < found.chat_4bit < found.qlora < 8 * GIB
    assert 15 * GIB < found.chat_16bit < found.lora < 17 * GIB
    assert 16 * 8.03e9 < found.full < 20 * 8.03e9  # fp32 weights, gradients, two states
