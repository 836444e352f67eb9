"""Every key of a recipe, on one page.

A recipe (TOML) has the tables ``[model] [lora] [data] [train] [memory] [energy]`` and the key ``out``; each class below
is one table, each field one key, with its meaning, its unit and its default. ``recipe.py`` reads and checks them. The
file imports nothing heavy, so that a mistyped key is answered before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Base = Literal["auto", "fp32", "bf16", "fp8", "int8", "nf4"]
Compute = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
TrainOn = Literal["assistant", "last", "all"]
DataFormat = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KNOWN_TARGETS = (*TARGETS, "qkv_proj", "gate_up_proj")
"""The last two are what Phi-3 has in place of five of the others."""


@dataclass(frozen=True)
class ModelOptions:
    path: str = ""
    """A folder with a Hugging Face checkpoint, or a hub id such as ``meta-llama/Llama-3.1-8B``."""
    revision: str = "main"
    """Branch, tag or commit of a hub id."""
    base: Base = "auto"
    """How the weights are held: ``fp32``, ``bf16``, ``fp8`` (8 bit, and their products computed in 8 bit: the quickest
    where memory allows it; NVIDIA GPUs from Hopper on), ``int8`` (8 bit as LLM.int8(), outliers apart, on any device)
    or ``nf4`` (4 bit). ``auto`` is what the checkpoint has if it is quantised, ``nf4`` for ``train.method = "lora"``
    and ``fp32`` master weights for ``"full"``."""
    compute: Compute = "auto"
    """The dtype of activations and products. ``auto``: bf16 on a GPU that has it, else fp16; on the CPU the dtype of
    an unquantised base, else fp32. ``fp8``, with an ``nf4`` (or ``fp8``) base: activations in bf16, and products with
    held weights in 8 bit, which rounds once more and is quicker than any other way in the memory of 4 bit; NVIDIA GPUs
    from Hopper on."""
    device: str = "auto"
    """``cuda``, ``cuda:1``, ``cpu``. ``auto`` takes a GPU if there is one."""
    add_tokens: tuple[str, ...] = ()
    """Texts that become tokens of their own, such as ``["<think>", "</think>"]``. What the vocabulary has already keeps
    its id; a new token's rows, in the embedding and in the output matrix, begin as the mean of all that there were.
    For ``train.method = "full"``: an adapter trains no rows."""
    pad_token: str | None = None
    """The token that exported tokenizers pad with. Needed only if the checkpoint's own equals its end token."""


@dataclass(frozen=True)
class LoraOptions:
    r: int = 16
    """Rank of the adapter."""
    alpha: float = 16.0
    """The adapter's output is scaled by ``alpha / r`` (by ``alpha / sqrt(r)`` with ``rslora``)."""
    dropout: float = 0.0
    """Probability with which inputs of the adapter are zeroed in training."""
    targets: tuple[str, ...] = TARGETS
    """Projections that get an adapter. Of a model whose checkpoint holds q, k and v, or gate and up, as one matrix
    (Phi-3: ``qkv_proj``, ``gate_up_proj``), all of those name that."""
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023)."""


@dataclass(frozen=True)
class Source:
    path: str
    """A file, a folder or a hub dataset id."""
    weight: float = 1.0
    """How often records of this source are seen in an epoch: 0.5 takes half of them, 2 takes each twice."""
    format: DataFormat | None = None
    """Overrides ``data.format`` for this source."""


@dataclass(frozen=True)
class DataOptions:
    sources: tuple[Source, ...] = ()
    """Where records come from: strings or tables with ``path``, ``weight``, ``format``."""
    format: DataFormat = "auto"
    """The form of the records; ``auto`` detects it and says what it found."""
    template: str | None = None
    """A named chat template (one of the checkpoint's further ones, or ``llama-3``, ``chatml``, ``zephyr``, ... of ours)
    or a ``.jinja`` file; by default the checkpoint's own, for conversations with tools its ``tool_use``."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """What the template is told besides the chat, such as ``{ enable_thinking = false, date_string = "26 Jul 2024" }``:
    names that it reads, in training and whenever the run is asked. A record's ``chat_template_kwargs`` goes before."""
    train_on: TrainOn = "assistant"
    """Which tokens carry loss: every assistant turn, the last one, or everything."""
    max_length: int = 2048
    """Longest example in tokens, and the length of a pack. Longer examples are counted, listed and left out. It is
    lowered to the model's context if that is shorter."""
    packing: bool = True
    """Lay several examples end to end in one pack (attention never crosses their border)."""
    eval_fraction: float = 0.0
    """Share of records held out for evaluation, between 0 and 0.5."""
    eval_sources: tuple[Source, ...] = ()
    """Files for evaluation, instead of a fraction."""
    streaming: bool = False
    """Read files as training goes, for data larger than memory. Shuffles within a window."""
    shuffle: bool = True
    """Draw records in a new order each epoch."""
    skip_bad: bool = False
    """Go on when records are unusable (they are counted and listed either way). Without it a bad record is an error."""


@dataclass(frozen=True)
class TrainOptions:
    objective: Literal["sft"] = "sft"
    """What is learnt. ``sft``: the next token of the trained turns."""
    method: Literal["lora", "full"] = "lora"
    """``lora`` trains an adapter over frozen weights, ``full`` trains every weight."""
    max_steps: int = 0
    """Optimiser steps; 0 means ``epochs`` decides."""
    epochs: float = 1.0
    """Passes over the data, used if ``max_steps`` is 0."""
    learning_rate: float = 0.0
    """Highest learning rate. 0 chooses 2e-4 for ``lora`` and 2e-5 for ``full``."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up, to 0 for ``linear`` and ``cosine``."""
    warmup: float = 0.03
    """Share of the steps (below 1) or number of steps (1 or more) in which the learning rate rises from 0."""
    tokens_per_step: int = 0
    """Tokens in one optimiser step, over all its micro-batches. 0 chooses by the amount of data and prints it."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """``adamw8bit`` keeps its states in 8 bit, by bitsandbytes (an extra)."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    seed: int = 0
    save_every: int = 0
    """Steps between checkpoints; 0 chooses so that about ten are made. One is always made at the end."""
    keep: int = 2
    """Complete checkpoints that stay on disk."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates at the end only, if there is anything to evaluate on."""
    sample_every: int = 0
    """Steps between sample generations; 0 makes none."""
    sample_prompts: tuple[str, ...] = ()
    """What samples are generated for; by default the first prompts of the evaluation or training records."""
    deterministic: bool = False
    """Only deterministic algorithms: the same loss to the last bit on the same machine."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also write metrics to these (each an extra). wandb and trackio may open connections; nothing else does."""


@dataclass(frozen=True)
class MemoryOptions:
    budget: str = "auto"
    """Device memory that training may take, such as ``"6.5GiB"`` or ``"24GB"``. ``auto``: what is free, less a
    margin."""


@dataclass(frozen=True)
class EnergyOptions:
    """What measuring cannot know. It changes no number of the training; see ``docs/energy.md``."""

    country: str | None = None
    """Where the machine stands, as an ISO 3166 code of three letters such as ``"FRA"``: gives the grams of CO2 of its
    electricity. Without it energy is told and CO2 is not."""
    pue: float = 1.0
    """Power usage effectiveness: what the building takes for each unit that the machine takes. 1 for a machine on a
    desk; 1.1 to 1.6 in data centres."""
    renewable_share: float = 0.0
    """Share of the electricity, 0 to 1, that is matched by purchases of renewable energy. It lowers the market-based
    figure, never the location-based one."""
    gpu_watts: float | None = None
    """Counts the GPU as so many watts for as long as it was held, an estimate, instead of reading its own counter."""


@dataclass(frozen=True)
class Recipe:
    """A whole run: ``recipe.toml`` in the run's folder holds it with every value filled in."""

    model: ModelOptions = field(default_factory=ModelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    data: DataOptions = field(default_factory=DataOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    energy: EnergyOptions = field(default_factory=EnergyOptions)
    out: str = ""
    """The run's folder; by default ``runs/<model>-<data>``."""
