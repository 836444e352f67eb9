"""Tiny models for tests of inference: a random decoder, and a random checkpoint with a tokenizer on disk."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder

TEXT = "the quick brown whippet runs over two lazy dogs and one grey cat, ünder thé moon → 日本語 🐕 0123456789.\n"
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" \
       "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # fmt: skip


def make_decoder(*, vocab_size: int = 61, context: int = 96, seed: int = 0) -> Decoder:
    config = ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        context=context,
    )
    decoder = Decoder(config, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            # Large enough that greedy replies wander instead of repeating one token.
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.35, generator=generator)
    return decoder.requires_grad_(False).eval()


def make_tokenizer(*, adds_bos: bool = True) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT] * 4, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return core


def write_checkpoint(
    folder: Path, *, template: str | None = CHAT, adds_bos: bool = True, seed: int = 0, context: int = 128
) -> Path:
    """A random Llama in Hugging Face's layout, fp32, 2 layers; replies wander through its 300 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    core = make_tokenizer(adds_bos=adds_bos)
    core.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": core.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | ({"chat_template": template} if template is not None else {}))
    )
    save_file(random_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_weights(config: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
    """Every tensor of a Llama checkpoint with this ``config.json``."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    matrices = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    tensors = {
        name: torch.randn(vocab, hidden, generator=generator) * 0.3 for name in ("model.embed_tokens", "lm_head")
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in matrices.items():
            tensors[f"model.layers.{layer}.{name}"] = torch.randn(shape, generator=generator) * 0.25
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}"] = 1 + torch.randn(hidden, generator=generator) * 0.1
    tensors["model.norm"] = 1 + torch.randn(hidden, generator=generator) * 0.1
    return {f"{name}.weight": tensor for name, tensor in tensors.items()}
