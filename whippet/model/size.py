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
    config: ModelConfig, length: int, *, full: bool, recompute: int = 0, supervised: float = 1.0
) -> float:
    """Operations of forward and backward.

    Backward of a matrix costs its forward once for the inputs, and once more for the weights if they are trained
    (``full``); of attention 2.5 times (five products for two). ``recompute`` layers run forward twice, but for the
    last product over frozen weights, whose values no gradient needs. The output matrix meets only the ``supervised``
    share of tokens.
    """
    again = recompute / config.num_layers
    last = config.hidden_size * config.intermediate_size / layer_matrix_parameters(config)
    matrices = matrix_flops_per_token(config) * (2 + full + again * (1 if full else 1 - last))
    head = head_flops_per_token(config) * (2 + full) * supervised
    return matrices + head + attention_flops_per_token(config, length) * (3.5 + again)


def weight_bytes(config: ModelConfig, base: str, item: int) -> dict[str, int]:
    """Bytes of the held weights by part: ``projections``, ``embedding``, ``head`` (0 if tied), ``other``.

    ``base`` is ``fp32``, ``bf16`` or ``nf4``. Under nf4 the projections take 4 bit a weight, a byte for each block of
    64 and 8 bytes for each 256 blocks; everything else is held in the compute dtype.
    """
    dense = {"fp32": 4, "bf16": 2, "nf4": item}[base]
    table = config.vocab_size * config.hidden_size * dense
    matrices = config.num_layers * layer_matrix_parameters(config)
    other = config.num_layers * layer_other_parameters(config) + config.hidden_size
    return {
        "projections": nf4_bytes(matrices) if base == "nf4" else matrices * dense,
        "embedding": table,
        "head": 0 if config.tie_embeddings else table,
        "other": other * dense,
    }


def nf4_bytes(weights: int) -> int:
    """Bytes of ``weights`` numbers in doubly quantised NF4."""
    blocks = -(-weights // NF4_BLOCK)
    return weights // 2 + blocks + -(-blocks // NF4_NESTED_BLOCK) * 8


def activation_bytes_per_token(
    config: ModelConfig, item: int, lora_r: int, targets: Sequence[str], recompute: bool, *, dropout: bool = False
) -> int:
    """Bytes that one layer keeps for its backward pass, a token. ``lora_r`` 0 means that every weight is trained.

    A recomputed layer keeps its input, ``H``. Otherwise: the two residual streams ``2H``, the turned qkv
    ``(Q + 2K) D``, attention's output ``QD`` (which is also the input of ``o_proj``), gate_up ``2F``, and ``x A^T`` of
    ``r`` numbers for each target; attention's log-sum-exp ``Q`` and two norms' scales in fp32. Norms and activations
    are made again. Dropout keeps a copy of the input for each target.
    """
    hidden = config.hidden_size
    if recompute:
        return hidden * item
    kept = 2 * hidden + config.qkv_size + config.num_heads * config.head_dim + 2 * config.intermediate_size
    if lora_r:
        shapes = projection_shapes(config)
        kept += lora_r * len(targets)
        kept += sum(shapes[target][1] for target in targets) if dropout else 0
    return kept * item + (config.num_heads + 2) * 4


def backward_bytes(config: ModelConfig, base: str, item: int, tokens: int, *, in_place: bool) -> int:
    """Bytes that one layer takes while its backward pass runs, at its highest, beside what it kept.

    The highest moments: at the activation, its gradient ``F``, in which the activation is made again, beside the
    residual stream's ``H`` (``in_place`` the gradient of gate_up takes gate_up's place, else it has ``2F`` of its own);
    at gate_up, the weight (or half of it) in the compute dtype and three rows of ``H``; at attention, the gradients of
    qkv before and after the turn, of the output, and an fp32 sum for the queries.
    """
    hidden, inner, queries = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    apart = 0 if in_place else 2 * inner
    activation = (inner + apart + hidden) * item * tokens
    weights = 2 * inner * hidden
    made = weights // 2 if base == "nf4" and weights >= NF4_HALVED else weights
    gate_up = (apart + 3 * hidden) * item * tokens + dense_bytes(made, base, item)
    down = (inner + 2 * hidden) * item * tokens + dense_bytes(weights // 2, base, item)
    attention = ((2 * config.qkv_size + 2 * queries + hidden) * item + 4 * queries) * tokens
    return max(activation, gate_up, down, attention)


def dense_bytes(weights: int, base: str, item: int) -> int:
    """Bytes of a matrix in the compute dtype, made for one product and dropped; 0 if it is held so."""
    return 0 if base != "nf4" and {"fp32": 4, "bf16": 2}[base] == item else weights * item


def kv_cache_bytes_per_token(config: ModelConfig, item: int) -> int:
    """Keys and values of all layers: ``2 L K D``."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * item


def optimizer_bytes(trained: int, optimizer: str) -> int:
    """States of ``trained`` fp32 parameters: 8 bytes each for ``adamw``, 2 (and scales) for ``adamw8bit``."""
    if optimizer == "adamw8bit":
        return 2 * trained + trained // 32
    return 8 * trained
