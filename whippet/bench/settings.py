"""What is measured: shapes of models, settings of a step, and the rows of the table.

Nothing heavy is imported here, so that a mistyped row is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.known import known

LLAMA_3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
SHAPES = {
    "8b": ModelConfig(
        "llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, rope_theta=500000.0, rope_scaling=LLAMA_3
    ),
    "70b": ModelConfig(
        "llama", 128256, 8192, 28672, 80, 64, 8, 128, 131072, rope_theta=500000.0, rope_scaling=LLAMA_3
    ),
    "3b": ModelConfig(
        "llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072, rope_theta=500000.0, rope_scaling=LLAMA_3,
        tie_embeddings=True,
    ),
    "1b": ModelConfig(
        "llama", 128256, 2048, 8192, 16, 32, 8, 64, 131072, rope_theta=500000.0, rope_scaling=LLAMA_3,
        tie_embeddings=True,
    ),
    "qwen-7b": known("Qwen/Qwen2.5-7B-Instruct"),
    "gemma-9b": known("google/gemma-2-9b-it"),
    "mistral-7b": known("mistralai/Mistral-7B-Instruct-v0.3"),
    "phi-4b": known("microsoft/Phi-3.5-mini-instruct"),
    "tiny": ModelConfig("llama", 1536, 192, 576, 8, 6, 3, 32, 1024, tie_embeddings=True),
}  # fmt: skip
"""Llama 3.1 8B, Llama 3.3 70B, Llama 3.2 3B and 1B, those of other families, and the embedded model."""
CAPS = ("16GB", "24GB", "48GB", "80GB")
"""Memory of cards for which the longest context is told."""

Kind = Literal["steps", "records", "context", "cold"]


@dataclass(frozen=True)
class Setting:
    """A step that is timed."""

    shape: str
    """One of ``SHAPES``."""
    docs: int = 2
    length: int = 2048
    """Tokens of a document."""
    budget: str = "auto"
    """As ``memory.budget``."""
    base: Literal["bf16", "fp8", "nf4"] = "nf4"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    rank: int = 16
    compute: Literal["auto", "fp8"] = "auto"
    """As ``model.compute``: ``fp8`` multiplies an NF4 base so."""

    @property
    def held(self) -> str:
        """How the base is held, and in what it is multiplied if that is no matter of course."""
        return self.base if self.compute == "auto" else f"{self.base}+{self.compute}"

    @property
    def name(self) -> str:
        budget = "" if self.budget == "auto" else f" {self.budget}"
        return f"{self.shape} {self.held} {self.docs}x{self.length}{budget}"

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.docs * self.length


@dataclass(frozen=True)
class Row:
    """A row of the table: what is measured, and what others are asked for beside it."""

    name: str
    setting: Setting
    kind: Kind = "steps"
    """``steps`` of random tokens, of ``records``; the longest ``context``; from a ``cold`` start to the first step."""
    warmup: int = 3
    """Steps before those that are timed. A shape is compiled when first met, and recorded when met again."""
    times: int = 1
    """How often as many steps are timed as was asked for: short ones need more."""
    examples: int = 0
    """Of a step of records; 0: as many as ``setting.tokens`` hold."""
    checkpointing: bool = True
    """Whether others compute activations again (their gradient checkpointing) or keep them: theirs are two settings
    where ours is a budget."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Options of the command line without which there is nothing to measure."""
        return {"records": ("--records", "--checkpoint"), "cold": ("--checkpoint",)}.get(self.kind, ())


ROWS = (
    Row("nf4-small", Setting("8b", budget="6.8GiB", optimizer="adamw8bit")),
    Row("nf4", Setting("8b", budget="20.8GiB"), checkpointing=False),
    Row("nf4-fp8", Setting("8b", budget="20.8GiB", compute="fp8"), checkpointing=False),
    Row("fp8", Setting("8b", budget="24GiB", base="fp8"), checkpointing=False),
    Row("long", Setting("8b", docs=1, length=32768, budget="14GiB", optimizer="adamw8bit")),
    Row("records-8", Setting("8b"), "records", warmup=30, times=4, examples=8),
    Row("records-packed", Setting("8b", docs=8), "records", warmup=6),
    Row("1b", Setting("1b"), checkpointing=False),
    Row("3b", Setting("3b"), checkpointing=False),
    Row("3b-fp8", Setting("3b", compute="fp8"), checkpointing=False),
    *(Row(name, Setting(name), checkpointing=False) for name in ("qwen-7b", "gemma-9b", "mistral-7b", "phi-4b")),
    Row("context", Setting("8b", docs=1, optimizer="adamw8bit", rank=32), "context"),
    Row("cold", Setting("8b"), "cold"),
    Row("70b", Setting("70b", docs=1, budget="41GiB", optimizer="adamw8bit")),
)
"""Of a GPU. Budgets are the peaks of the trainer that they are compared with; of 70b about the least that holds it."""
CPU_ROWS = (Row("tiny", Setting("tiny", length=512)),)


def shape_of(config: ModelConfig) -> str | None:
    """The name of a checkpoint's shape, if it is one of ``SHAPES``."""
    return next((name for name, known in SHAPES.items() if _sizes(known) == _sizes(config)), None)


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    heads = (config.num_heads, config.num_kv_heads, config.head_dim)
    return config.vocab_size, config.hidden_size, config.intermediate_size, config.num_layers, *heads
