"""How much a decoder weighs and works: parameters, bytes and operations, from its config alone.

In: a ``ModelConfig`` and how it will be held and trained. Out: plain numbers, for the planner and for reports.
H: hidden. F: intermediate. V: vocabulary. L: layers. Q, K: query and key-value heads. D: head_dim. r: rank.
``item`` is the bytes of the compute dtype (2 for bf16).
"""

from __future__ import annotations

from collections.abc import Sequence

from whippet.model.config import ModelConfig

NF4_BLOCK = 64
NF4_NESTED_BLOCK = 256
NF4_HALVED = 2**26
"""As in ``kernels/nf4.py`` and ``kernels/frozen_linear.py``, which need torch."""


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of each projection of one layer, by its name in a checkpoint."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def layer_matrix_parameters(config: ModelConfig) -> int:
    """Weights of the projections of one layer: ``2HQD + 2HKD + 3HF``."""
    return sum(rows * columns for rows, columns in projection_shapes(config).values())


def layer_other_parameters(config: ModelConfig) -> int:
    """Norms and biases of one layer."""
    biases = config.qkv_bias * config.qkv_size + config.o_bias * config.hidden_size
    mlp = config.mlp_bias * (2 * config.intermediate_size + config.hidden_size)
    return 2 * config.hidden_size + biases + mlp


def parameters(config: ModelConfig) -> int:
    """Every weight once: ``VH`` (twice if untied) ``+ L (matrices + norms + biases) + H``."""
    tables = (1 if config.tie_embeddings else 2) * config.vocab_size * config.hidden_size
    layer = layer_matrix_parameters(config) + layer_other_parameters(config)
    return tables + config.num_layers * layer + config.hidden_size


def lora_parameters(config: ModelConfig, r: int, targets: Sequence[str]) -> int:
    """Factors of all layers: ``r (rows + columns)`` for each target."""
    shapes = projection_shapes(config)
    return config.num_layers * sum(r * sum(shapes[target]) for target in targets)


def stacked_parameters(config: ModelConfig, r: int, targets: Sequence[str]) -> int:
    """Numbers of the stacked factors of all layers (``kernels/frozen_linear.py``): for each fused matrix with n adapted
    parts ``n r`` rows of A, and as many columns of B with all of the matrix's rows."""
    shapes = projection_shapes(config)
    total = 0
    for fused in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        rows, columns = sum(shapes[part][0] for part in fused), shapes[fused[0]][1]
        total += r * sum(part in targets for part in fused) * (rows + columns)
    return config.num_layers * total


def forward_flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations of one forward pass, a multiplication and an addition counted as two.

    Matrices ``2 (L · matrices + VH)``, and causal attention ``2 L Q D · length``: each token meets half its document on
    average, in two products of ``2 Q D`` operations a pair.
    """
    return matrix_flops_per_token(config) + head_flops_per_token(config) + attention_flops_per_token(config, length)


def matrix_flops_per_token(config: ModelConfig) -> float:
    """Forward operations in the projections of all layers."""
    return 2.0 * config.num_layers * layer_matrix_parameters(config)


def head_flops_per_token(config: ModelConfig) -> float:
    """Forward operations in the output matrix, for a token that is supervised."""
    return 2.0 * config.vocab_size * config.hidden_size


def attention_flops_per_token(config: ModelConfig, length: int) -> float:
    """Forward operations in attention for documents of ``length`` tokens."""
    return 2.0 * config.num_layers * config.num_heads * config.head_dim * length


def training_flops_per_token(
    config: ModelConfig,
    length: int,
    *,
    full: bool,
    recompute: int = 0,
    halves: int = 0,
    supervised: float = 1.0,
    product: float = 1.0,
) -> float:
    """Operations of forward and backward.

    Backward of a matrix costs its forward once for the inputs, and once more for the weights if they are trained
    (``full``); of attention 2.5 times (five products for two). ``recompute`` layers run forward twice, ``halves`` of
    them only in their MLP half; but for the last product over frozen weights, whose values no gradient needs. The
    output matrix meets only the ``supervised`` share of tokens. ``product`` is what an operation in the projections
    counts.
    """
    last = config.hidden_size * config.intermediate_size / layer_matrix_parameters(config)
    whole, half = (number / config.num_layers for number in (recompute - halves, halves))
    again = whole * (1 if full else 1 - last) + half * (3 if full else 2) * last
    matrices = product * matrix_flops_per_token(config) * (2 + full + again)
    head = head_flops_per_token(config) * (2 + full) * supervised
    return matrices + head + attention_flops_per_token(config, length) * (3.5 + whole)


def weight_bytes(config: ModelConfig, base: str, item: int) -> dict[str, int]:
    """Bytes of the held weights by part: ``projections``, ``embedding``, ``head`` (0 if tied), ``other``.

    ``base`` is ``fp32``, ``bf16``, ``fp8`` or ``nf4``. Under nf4 the projections take 4 bit a weight, a byte for each
    block of 64 and 8 bytes for each 256 blocks; under fp8 a byte a weight and 4 bytes a row; everything else is held in
    the compute dtype.
    """
    dense = {"fp32": 4, "bf16": 2}.get(base, item)
    table = config.vocab_size * config.hidden_size * dense
    matrices = config.num_layers * layer_matrix_parameters(config)
    other = config.num_layers * layer_other_parameters(config) + config.hidden_size
    if base == "nf4":
        projections = nf4_bytes(matrices)
    elif base == "fp8":
        projections = matrices + 4 * config.num_layers * sum(rows for rows, _ in projection_shapes(config).values())
    else:
        projections = matrices * dense
    return {
        "projections": projections,
        "embedding": table,
        "head": 0 if config.tie_embeddings else table,
        "other": other * dense,
    }


def nf4_bytes(weights: int) -> int:
    """Bytes of ``weights`` numbers in doubly quantised NF4."""
    blocks = -(-weights // NF4_BLOCK)
    return weights // 2 + blocks + -(-blocks // NF4_NESTED_BLOCK) * 8


def dense_bytes(weights: int, base: str, item: int) -> int:
    """Bytes of a matrix made for one product and dropped: in the compute dtype, 0 if it is held so; in FP8 transposed,
    for an input's gradient."""
    if base == "fp8":
        return weights
    return 0 if {"fp32": 4, "bf16": 2}.get(base) == item else weights * item


def kv_cache_bytes_per_token(config: ModelConfig, item: int) -> int:
    """Keys and values of all layers: ``2 L K D``."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * item


def optimizer_bytes(trained: int, optimizer: str) -> int:
    """States of ``trained`` fp32 parameters: 8 bytes each for ``adamw``, 2 (and scales) for ``adamw8bit``."""
    if optimizer == "adamw8bit":
        return 2 * trained + trained // 32
    return 8 * trained
