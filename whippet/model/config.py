"""What a decoder is made of, in plain numbers. Imports nothing heavy, so tools can read it.

A field earns its place when two supported models differ in it. ``families.py`` makes one from a ``config.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length they were trained at."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    """llama3: wavelengths longer than ``original_context / low_freq_factor`` are stretched fully."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths shorter than ``original_context / high_freq_factor`` are left alone."""
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    family: str
    """The name in ``families.py``, such as ``llama`` or ``qwen2``."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    """Longest sequence, in tokens, that the checkpoint promises (``max_position_embeddings``)."""
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
