"""What a layer keeps between its forward and its backward pass, and what it takes at its highest in the backward pass.

In: a ``ModelConfig``, how the layer is held, and which way it goes: ``kept`` (nothing is computed again), ``half`` (the
MLP half is, from the residual sum after attention) or ``whole`` (everything is, from the layer's input). Out: bytes.
H: hidden. F: intermediate. Q, K: query and key-value heads. D: head_dim. E = (Q + 2K) D. C: tokens of a tile.
``item`` is the bytes of the compute dtype (2 for bf16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from whippet.model.config import ModelConfig
from whippet.model.scratch import block_attention_bytes, int8_product_bytes, product_bytes
from whippet.model.size import NF4_HALVED, adapted, dense_bytes, projection_shapes

Way = Literal["kept", "half", "whole"]
ATTENTION_HALF = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")


@dataclass(frozen=True)
class Kept:
    """Bytes a token of what one layer's backward pass reads."""

    x: int
    """The layer's input."""
    attention: int
    """What the attention half keeps besides."""
    sum: int
    """The residual sum after it."""
    mlp: int
    """What the MLP half keeps besides."""

    @property
    def half(self) -> int:
        """All but the MLP half's."""
        return self.x + self.attention + self.sum

    @property
    def whole(self) -> int:
        return self.half + self.mlp


def kept_bytes(config: ModelConfig, item: int, lora_r: int, targets: Sequence[str], *, dropout: bool = False) -> Kept:
    """``lora_r`` 0 means that every weight is trained.

    The two residual streams ``H``, the turned qkv ``E``, attention's output ``QD`` (which is also the input of
    ``o_proj``), gate_up ``2F``, and ``x A^T`` of ``r`` numbers for each target; attention's log-sum-exp ``Q`` and two
    norms' scales in fp32. Norms and activations are made again. Dropout keeps a copy of the input for each target.
    Where heads are normalised, qkv is there as it was before, too; and a norm behind a half keeps what that
    gives, ``H``.
    """
    shapes = projection_shapes(config)
    numbers = {True: config.qkv_size + config.num_heads * config.head_dim, False: 2 * config.intermediate_size}
    for target in adapted(config, targets) if lora_r else ():
        numbers[target in ATTENTION_HALF] += lora_r + (shapes[target][1] if dropout else 0)
    numbers[True] += config.qkv_size * config.qk_norm
    norms = 1 + config.post_norms
    for half in numbers:
        numbers[half] += config.hidden_size * config.post_norms
    stream = config.hidden_size * item
    attention = numbers[True] * item + (config.num_heads + norms) * 4
    return Kept(stream, attention, stream, numbers[False] * item + norms * 4)


def highest_bytes(
    config: ModelConfig,
    base: str,
    item: int,
    kept: Kept,
    way: Way,
    tokens: int,
    tile: int = 0,
    *,
    in_place: bool,
    fp8: bool = False,
    device: str = "cuda",
    blocks_of: int = 0,
) -> int:
    """What a layer takes at the highest moment of its backward pass, all that it keeps or computes again included.

    One such moment is in the MLP half, beside the whole of what the layer keeps and the residual stream's gradient
    ``H``. By tiles it is C tokens wide, and else the ``whole`` way also holds what attention adds. The other is
    attention's backward pass, when the MLP half's are gone: the gradients of its output ``QD`` and of qkv ``E``, and in
    fp32 sums for the queries, for keys and values that heads share, and two numbers a query. ``blocks_of``: attention
    is that of ``kernels/block_attention.py``, for documents of so many tokens. ``fp8``: products with the layer's
    weights are computed so.
    """
    tiled = 0 < tile < tokens
    stream = config.hidden_size * item * tokens
    held = (kept.x + kept.attention) * tokens
    at_once = tile if tiled else tokens
    fp8 = fp8 or base == "fp8"
    mlp = _mlp_bytes(config, base, item, kept, way, at_once, tiled=tiled, in_place=in_place, fp8=fp8, device=device)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sums = (4 * queries + (8 * keys if keys < queries else 0) + 8 * config.num_heads) * tokens
    if blocks_of:
        sums = block_attention_bytes(config, tokens, blocks_of)
    attention = (queries + config.qkv_size) * item * tokens + sums
    # Without tiles the gradient of the output is still there beside that of the sum.
    grads = 2 * stream if way == "whole" and not tiled else stream
    return max(held + kept.sum * tokens + stream + mlp, held + grads + attention)


def _mlp_bytes(
    config: ModelConfig,
    base: str,
    item: int,
    kept: Kept,
    way: Way,
    tokens: int,
    *,
    tiled: bool,
    in_place: bool,
    fp8: bool,
    device: str,
) -> int:
    """The MLP half's own, for ``tokens`` at once.

    The highest moments: at the down projection the gradient of the activation ``F`` and the weight; then the activation
    made again in that place (``in_place`` the gradient of gate_up takes gate_up's place, else it has ``2F`` of its
    own); at gate_up its gradient ``H``, the input that is made again, and the weight (or half of it); and before all
    that, where gate_up is computed again, its input and the weight. A weight is there in the compute dtype; under fp8
    it is its codes transposed, and the codes of the gradient beside them. Int8 weights go through more on their way,
    and so do the inputs of a product with them, so that the forward pass may have the highest moment of all.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    stream = hidden * item * tokens
    apart = 0 if in_place else 2 * inner * item * tokens
    weight = 2 * inner * hidden
    made = weight // 2 if base == "nf4" and weight >= NF4_HALVED and not fp8 else weight
    codes = tokens if fp8 else 0
    behind = stream if config.post_norms else 0  # the gradient of what the norm behind it reads
    activation = inner * item * tokens + apart + 2 * inner * codes + behind
    down = behind + hidden * codes + product_bytes(weight // 2, base, item, beside=inner * item * tokens, fp8=fp8)
    gate_up = apart + 2 * inner * codes + product_bytes(made, base, item, beside=2 * stream, fp8=fp8)
    forward = stream * (2 if way == "whole" and not tiled else 1) + hidden * codes
    if base == "int8":
        last = inner * item * tokens + int8_product_bytes(tokens, hidden, inner, item, device)
        forward = max(forward + int8_product_bytes(tokens, 2 * inner, hidden, item, device), stream + last)
    elif base != "fp8":
        forward += dense_bytes(weight, base, item, fp8=fp8)
    return kept.mlp * tokens + max(activation, down, gate_up, forward) + (stream if tiled else 0)
