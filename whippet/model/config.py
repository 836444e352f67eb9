"""What a decoder is made of, in plain numbers. Imports nothing heavy, so tools can read it.

A field earns its place when two supported models differ in it. ``families.py`` makes one from a ``config.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]
RopeKind = Literal["linear", "llama3", "longrope", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length they were trained at."""

    kind: RopeKind
    factor: float = 1.0
    """linear, llama3, yarn: by how much."""
    low_freq_factor: float = 1.0
    """llama3, yarn: wavelengths longer than ``original_context / low_freq_factor`` are stretched fully."""
    high_freq_factor: float = 4.0
    """llama3, yarn: wavelengths shorter than ``original_context / high_freq_factor`` are left alone."""
    original_context: int = 8192
    """llama3, longrope, yarn: the context before. longrope: documents longer than it are turned by ``long_factors``."""
    short_factors: tuple[float, ...] = ()
    """longrope: what each frequency is divided by, ``[head_dim / 2]``."""
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    """longrope, yarn: cosines and sines are multiplied by it."""
    truncate: bool = True
    """yarn: the borders of the two factors are moved apart, to whole channels."""


@dataclass(frozen=True)
class ModelConfig:
    family: str
    """The name in ``families.py``, such as ``llama`` or ``qwen2``. No computation asks for it."""
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
    windows: tuple[int, ...] = ()
    """For each layer how many tokens a query attends to, its own among them; 0: all before it. Empty: 0 in each."""
    local_rope_theta: float | None = None
    """Plain rotary frequencies of the layers with a window, where those differ."""
    qk_norm: bool = False
    """Each head of queries and keys is normalised before it is turned."""
    post_norms: bool = False
    """What attention and MLP add to the residual stream is normalised first."""
    unit_offset: bool = False
    """Norms scale by 1 + w, in fp32 and rounded once."""
    scale_embeddings: bool = False
    """Embeddings are multiplied by ``sqrt(hidden_size)``, rounded to the compute dtype."""
    activation: Activation = "silu"
    """Of the gate."""
    query_pre_attn_scalar: int | None = None
    """Scores of attention are divided by its root; None: ``head_dim``."""
    attention_softcap: float | None = None
    """Scores s become ``c tanh(s / c)``."""
    logit_softcap: float | None = None
    """The same of logits."""
    fused_names: bool = False
    """The checkpoint holds ``qkv_proj`` and ``gate_up_proj``, not the five that they are made of."""

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_scale(self) -> float:
        """What scores of attention are multiplied by."""
        return float((self.query_pre_attn_scalar or self.head_dim) ** -0.5)

    def window(self, layer: int) -> int:
        """Of one layer, as in ``windows``."""
        return self.windows[layer] if self.windows else 0
