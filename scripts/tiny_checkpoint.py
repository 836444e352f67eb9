"""The embedded model before it has learnt anything: its tokenizer, its chat template and random weights.

Comes in: lines of training records, a shape and a seed. Goes out: an ordinary Hugging Face Llama checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from whippet.model.config import ModelConfig
from whippet.model.families import config_to_hf
from whippet.weights.hf import write_checkpoint

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIAL = (PAD, BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
PLAIN_MARKERS = ("<tool_call>", "</tool_call>")
VOCABULARY = 1536
TEMPLATE = Path(__file__).with_name("tiny_template.jinja")
SHAPE = ModelConfig(
    family="llama", vocab_size=VOCABULARY, hidden_size=192, intermediate_size=576, num_layers=8, num_heads=6,
    num_kv_heads=3, head_dim=32, context=1024, tie_embeddings=True,
)  # fmt: skip
SMOKE = ModelConfig(
    family="llama", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=192, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=32, context=1024, tie_embeddings=True,
)  # fmt: skip


def write_random_checkpoint(folder: Path, lines: Iterable[str], shape: ModelConfig, seed: int) -> None:
    """Write all files of the checkpoint into ``folder``, weights in fp32. ``lines`` train the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, lines)
    ids = {"bos_token_id": SPECIAL.index(BEGIN), "eos_token_id": SPECIAL.index(END), "pad_token_id": SPECIAL.index(PAD)}
    _write(folder / "config.json", config_to_hf(shape, dtype="float32", extra=dict(ids)))
    _write(folder / "generation_config.json", {**ids, "do_sample": False})
    write_checkpoint(folder, random_weights(shape, seed))


def write_tokenizer(folder: Path, lines: Iterable[str]) -> None:
    """Byte-level BPE over the text of ``lines``; every digit is a token, so that numbers are read digit by digit."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(PLAIN_MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(lines), trainer)
    core.add_tokens([tokenizers.AddedToken(marker, normalized=False) for marker in PLAIN_MARKERS])
    core.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    core.save(str(folder / "tokenizer.json"))
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    template = TEMPLATE.read_text(encoding="utf-8")
    config = special | {
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": SHAPE.context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def random_weights(shape: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Normal with deviation 0.02; what writes to the residual stream is smaller by the root of the number of writers,
    so that the stream does not grow with depth (Radford et al. 2019)."""
    draw = torch.Generator().manual_seed(seed)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim

    def normal(rows: int, columns: int, shrink: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=draw).mul_(0.02 * shrink)

    residual = 1 / math.sqrt(2 * shape.num_layers)
    yield "model.embed_tokens.weight", normal(shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", torch.ones(hidden)
        yield f"{at}.self_attn.q_proj.weight", normal(queries, hidden)
        yield f"{at}.self_attn.k_proj.weight", normal(keys, hidden)
        yield f"{at}.self_attn.v_proj.weight", normal(keys, hidden)
        yield f"{at}.self_attn.o_proj.weight", normal(hidden, queries, residual)
        yield f"{at}.post_attention_layernorm.weight", torch.ones(hidden)
        yield f"{at}.mlp.gate_proj.weight", normal(inner, hidden)
        yield f"{at}.mlp.up_proj.weight", normal(inner, hidden)
        yield f"{at}.mlp.down_proj.weight", normal(hidden, inner, residual)
    yield "model.norm.weight", torch.ones(hidden)


def _texts(lines: Iterable[str]) -> Iterator[str]:
    """What people and functions say in the records, and the schemas of functions as the template shows them."""
    for line in lines:
        record = json.loads(line)
        for tool in record.get("tools", ()):
            yield json.dumps(tool["function"])
        for message in record["messages"]:
            for call in message.get("tool_calls", ()):
                yield json.dumps(call["function"])
            yield message["content"]


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
