"""How much a decoder weighs and works: parameters, bytes and operations, from its config alone.

In: a ``ModelConfig`` and how it will be held and trained. Out: plain numbers, for the planner and for reports.
H: hidden. F: intermediate. V: vocabulary. L: layers. Q, K: query and key-value heads. D: head_dim. r: rank.
``item`` is the bytes of the compute dtype (2 for bf16).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from whippet.errors import UsageError
from whippet.model.config import ModelConfig

NF4_BLOCK = 64
NF4_NESTED_BLOCK = 256
NF4_HALVED = 2**26
"""As in ``kernels/nf4.py`` and ``kernels/frozen_linear.py``, which need torch."""


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""What a checkpoint of ``fused_names`` holds as one."""


def matrices(config: ModelConfig) -> dict[str, tuple[dict[str, int], int]]:
    """The matrices of one layer by their names in our decoder: the rows of each part, which is a projection with its
    name in a checkpoint, and the columns."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    qkv = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    gate_up = {"gate_proj": inner, "up_proj": inner}
    if config.fused_names:
        qkv, gate_up = {"qkv_proj": config.qkv_size}, {"gate_up_proj": 2 * inner}
    return {
        "qkv": (qkv, hidden),
        "o": ({"o_proj": hidden}, queries),
        "gate_up": (gate_up, hidden),
        "down": ({"down_proj": hidden}, inner),
    }


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of each projection of one layer, by its name in a checkpoint."""
    return {part: (n, columns) for rows, columns in matrices(config).values() for part, n in rows.items()}


def adapted(config: ModelConfig, targets: Sequence[str]) -> tuple[str, ...]:
    """The projections of this model that ``targets`` name, in the order of the layer. Where a checkpoint holds several
    as one matrix, all of them name it too (they are the default of a recipe). UsageError for a name that it has not."""
    shapes = projection_shapes(config)
    wanted = set(targets)
    for fused, parts in FUSED.items():
        if fused in shapes and wanted.issuperset(parts):
            wanted = wanted - set(parts) | {fused}
    for name in targets:
        if name in wanted and name not in shapes:
            raise UsageError(f"lora.targets: this model has no {name}; it has {', '.join(shapes)}")
    return tuple(name for name in shapes if name in wanted)


def layer_matrix_parameters(config: ModelConfig) -> int:
    """Weights of the projections of one layer: ``2HQD + 2HKD + 3HF``."""
    return sum(rows * columns for rows, columns in projection_shapes(config).values())


def layer_other_parameters(config: ModelConfig) -> int:
    """Norms and biases of one layer."""
    biases = config.qkv_bias * config.qkv_size + config.o_bias * config.hidden_size
    mlp = config.mlp_bias * (2 * config.intermediate_size + config.hidden_size)
    norms = (4 if config.post_norms else 2) * config.hidden_size + 2 * config.qk_norm * config.head_dim
    return norms + biases + mlp


def parameters(config: ModelConfig) -> int:
    """Every weight once: ``VH`` (twice if untied) ``+ L (matrices + norms + biases) + H``."""
    tables = (1 if config.tie_embeddings else 2) * config.vocab_size * config.hidden_size
    layer = layer_matrix_parameters(config) + layer_other_parameters(config)
    return tables + config.num_layers * layer + config.hidden_size


def lora_parameters(config: ModelConfig, r: int, targets: Sequence[str]) -> int:
    """Factors of all layers: ``r (rows + columns)`` for each target."""
    shapes = projection_shapes(config)
    return config.num_layers * sum(r * sum(shapes[target]) for target in adapted(config, targets))


def stacked_parameters(config: ModelConfig, r: int, targets: Sequence[str]) -> int:
    """Numbers of the stacked factors of all layers (``kernels/frozen_linear.py``): for each fused matrix with n adapted
    parts ``n r`` rows of A, and as many columns of B with all of the matrix's rows."""
    chosen = adapted(config, targets)
    total = 0
    for rows, columns in matrices(config).values():
        total += r * sum(part in chosen for part in rows) * (sum(rows.values()) + columns)
    return config.num_layers * total


def forward_flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations of one forward pass, a multiplication and an addition counted as two.

    Matrices ``2 (L · matrices + VH)``, and causal attention: each token meets half its document on average, or its
    window, in two products of ``2 Q D`` operations a pair.
    """
    return matrix_flops_per_token(config) + head_flops_per_token(config) + attention_flops_per_token(config, length)


def matrix_flops_per_token(config: ModelConfig) -> float:
    """Forward operations in the projections of all layers."""
    return 2.0 * config.num_layers * layer_matrix_parameters(config)


def head_flops_per_token(config: ModelConfig) -> float:
    """Forward operations in the output matrix, for a token that is supervised."""
    return 2.0 * config.vocab_size * config.hidden_size


def attention_flops_per_token(config: ModelConfig, length: int) -> float:
    """Forward operations in attention for documents of ``length`` tokens: ``4 Q D`` a pair of tokens. A token meets
    ``length / 2`` on average, and under a window w ``w - w² / (2 length)``."""
    windows = [min(window or length, length) for window in config.windows or (0,) * config.num_layers]
    met = sum(window - window**2 / (2 * length) for window in windows) if length else 0.0
    return 4.0 * config.num_heads * config.head_dim * met


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
    last, matrices, head, attention = _operations(config, length)
    whole, half = (number / config.num_layers for number in (recompute - halves, halves))
    every = full or config.post_norms  # the norm behind the last product reads its values
    again = whole * (1 if every else 1 - last) + half * (3 if every else 2) * last
    matrices = product * matrices * (2 + full + again)
    return matrices + head * (2 + full) * supervised + attention * (3.5 + whole)


@cache
def _operations(config: ModelConfig, length: int) -> tuple[float, float, float, float]:
    """The last product's share of a layer's weights; forward operations a token in the projections, in the output
    matrix and in attention."""
    last = config.hidden_size * config.intermediate_size / layer_matrix_parameters(config)
    flops = matrix_flops_per_token(config), head_flops_per_token(config), attention_flops_per_token(config, length)
    return last, *flops


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
    elif base in ("fp8", "int8"):
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


def dense_bytes(weights: int, base: str, item: int, *, fp8: bool = False) -> int:
    """Bytes of a matrix made for one product and dropped: in the compute dtype, 0 if it is held so; with products in
    ``fp8`` as codes, transposed for an input's gradient."""
    if fp8 or base == "fp8":
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
