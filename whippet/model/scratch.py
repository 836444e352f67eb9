"""What some ops take while they run, besides what they read and give: counted from their code, without torch.

In: shapes. Out: bytes at the highest moment. H: hidden. Q, K: query and key-value heads. D: head_dim. C: queries of a
block. S: keys that they meet. T: tokens. N, K: rows and columns of a weight. R: rows of x in one go.
"""

from __future__ import annotations

from whippet.model.config import ModelConfig
from whippet.model.size import dense_bytes

BLOCK = 256
"""As in ``kernels/block_attention.py``, and the next two in ``kernels/int8.py``; all of these need torch."""
MOST_SUMS = 2**24
FEWEST_ROWS = 32
SCORE_BYTES = 20
"""Backward: scores, weights, gradient of the scores, and of the slope of the cap two steps, in fp32 each."""
SUM_BYTES = {"cuda": 8, "cpu": 12}
"""Of an int8 product: its sum in int32 and its scale in fp32; a CPU turns the sum into fp32 first."""
MADE_BYTES = 4
"""A weight of int8 on its way to a float: code times scale, in fp32; its rounded form comes beside that."""


def block_attention_bytes(config: ModelConfig, tokens: int, longest: int) -> int:
    """Of ``kernels/block_attention.py``, in its backward pass, if the longest document is as long as ``longest`` and
    all the others of the ``tokens`` are too: ``B C Q (20 S + 12 D)``, where B documents go side by side.

    Shorter ones of one length that lie side by side come to the same, and else to less. A head's 12 bytes are its
    query, and the gradients of query and output; fp32 sums for keys and values, ``8 K D`` a token, are of all tokens.
    """
    length = min(longest, tokens)
    queries = min(BLOCK, length)
    widest = 0 if not config.windows or 0 in config.windows else max(config.windows)
    keys = min(length, widest + queries - 1) if widest else length
    scores = queries * config.num_heads * (SCORE_BYTES * keys + 12 * config.head_dim)
    return -(-tokens // length) * scores + 8 * config.num_kv_heads * config.head_dim * tokens


def int8_product_bytes(tokens: int, rows: int, columns: int, item: int, device: str) -> int:
    """Of a product with an int8 weight: the sizes of x in the search for outliers ``T K``; and of R rows at a time
    x without outliers, in fp32, times its scale in fp32 and as codes, then codes and sums. The columns of outliers, a
    fraction of a percent, are not counted. fp32 activations meet the weight as floats."""
    if item == 4:
        return MADE_BYTES * rows * columns
    at_once = min(tokens, max(MOST_SUMS // max(rows, columns), FEWEST_ROWS))
    rounding, sums = (9 + item) * columns, columns + SUM_BYTES[device] * rows
    return max(item * tokens * columns, at_once * max(rounding, sums))


def product_bytes(weights: int, base: str, item: int, *, beside: int, fp8: bool = False) -> int:
    """Of a product of a gradient with a matrix of ``weights``: the matrix as it is made for it, and what ``beside`` it
    is there only from the product on, such as its result."""
    made = (MADE_BYTES + (item if item < 4 else 0)) * weights if base == "int8" else 0
    return max(made, beside + dense_bytes(weights, base, item, fp8=fp8))
