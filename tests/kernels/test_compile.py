"""Every kernel compiles for the cards that it is meant for: no GPU is needed to know that.

The interpreter runs what a compiler may refuse. Here Triton compiles each kernel to the machine code of a T4, an A100,
an H100 and a B200, with the types and constants that a model gives it.
"""

from __future__ import annotations

from typing import Any

import pytest

from whippet.kernels import (
    copies,
    dense_rows,
    fp8,
    gated_linear,
    gated_mlp,
    linear_cross_entropy,
    nf4,
    nf4_fp8,
    qk_norm,
    rms_norm,
    rope,
    tiles,
)

triton = pytest.importorskip("triton")

CARDS = {"T4": 75, "A100": 80, "H100": 90, "B200": 100}
NORM = {"width": "i32", "BLOCK": 4096}
NORM_FORWARD = {
    "x_ptr": "*h", "residual_ptr": "*h", "weight_ptr": "*h", "sum_ptr": "*h", "y_ptr": "*h", "rstd_ptr": "*fp32",
    "scales_ptr": "*fp32", "x_stride": "i32", "residual_stride": "i32", "y_stride": "i32", "eps": "fp32", "ADD": True,
    "OFFSET": False, "LARGEST": fp8.LARGEST, "LEAST": fp8.LEAST, **NORM,
}  # fmt: skip
GATED_BACKWARD = {
    "hidden_ptr": "*h", "x_ptr": "*h", "du_ptr": "*h", "a_ptr": "*h", "scale_ptr": "*fp32", "largest_ptr": "*i32",
    "num_rows": "i32", "width": "i32", "x_stride": "i32", "du_stride": "i32", "a_stride": "i32", "RANK": 16,
    "GELU": False, "FIND_LARGEST": False, "ROWS": gated_linear.ROWS, "COLUMNS": gated_linear.COLUMNS, "RANKS": 16,
}  # fmt: skip
QK_NORM = {
    "x_ptr": "*h", "grad_ptr": "*h", "q_weight_ptr": "*h", "k_weight_ptr": "*h", "cos_ptr": "*fp32", "sin_ptr": "*fp32",
    "y_ptr": "*h", "x_stride": "i32", "grad_stride": "i32", "num_heads": "i32", "query_heads": "i32",
    "turned_heads": "i32", "eps": "fp32", "HALF": 64, "HALF_BLOCK": 64, "HEADS": rope.HEADS,
}  # fmt: skip
COMPLETED = {
    "x_ptr": "*h", "y_ptr": "*h", "gate_u_ptr": "*h", "gate_b_ptr": "*h", "up_u_ptr": "*h", "up_b_ptr": "*h",
    "largest_ptr": "*i32", "num_rows": "i32", "width": "i32", "x_stride": "i32", "u_stride": "i32", "b_stride": "i32",
    "GATE_RANK": 16, "UP_RANK": 0, "GELU": False, "FIND_LARGEST": True, "ROWS": gated_mlp.ROWS,
    "COLUMNS": gated_mlp.COLUMNS, "GATE_RANKS": 16, "UP_RANKS": 16,
}  # fmt: skip
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dense rows": (
        dense_rows._part_kernel,
        {"x_ptr": "*h", "weight_ptr": "*h", "sums_ptr": "*fp32", "num_rows": "i32", "num_outputs": "i32",
         "x_stride": "i32", "WIDTH": 4096, "ROUNDS": 4, "ROWS": 16, "OUTPUTS": 64, "INPUTS": 128},
    ),
    "dense rows' sum": (
        dense_rows._sum_kernel,
        {"sums_ptr": "*fp32", "y_ptr": "*h", "count": "i32", "PARTS": 4, "SUMS": dense_rows.SUMS},
    ),
    "rms_norm forward": (
        rms_norm._forward_kernel,
        {**NORM_FORWARD, "codes_ptr": "*h", "ROWS": False},
    ),
    "rms_norm backward": (
        rms_norm._backward_kernel,
        {"grad_ptr": "*h", "x_ptr": "*h", "weight_ptr": "*h", "rstd_ptr": "*fp32", "grad_sum_ptr": "*h", "dx_ptr": "*h",
         "grad_stride": "i32", "x_stride": "i32", "grad_sum_stride": "i32", "ADD": True, "OFFSET": True, **NORM},
    ),
    "norm of heads and rope": (qk_norm._kernel, {**QK_NORM, "BACK": False, "OFFSET": False}),
    "norm of heads and rope, back": (qk_norm._kernel, {**QK_NORM, "BACK": True, "OFFSET": True}),
    "rope": (
        rope._turn_kernel,
        {"x_ptr": "*h", "cos_ptr": "*fp32", "sin_ptr": "*fp32", "y_ptr": "*h", "x_stride": "i32", "num_heads": "i32",
         "turned_heads": "i32", "BACK": True, "HALF": 64, "HALF_BLOCK": 64, "HEADS": rope.HEADS},
    ),
    "gated_mlp forward": (
        gated_mlp._forward_kernel,
        {"x_ptr": "*h", "y_ptr": "*h", "x_stride": "i32", "width": "i32", "GELU": False, "BLOCK": gated_mlp.BLOCK},
    ),
    "gated_mlp backward": (
        gated_mlp._backward_kernel,
        {"grad_ptr": "*h", "x_ptr": "*h", "dx_ptr": "*h", "grad_stride": "i32", "x_stride": "i32", "width": "i32",
         "GELU": True, "BLOCK": gated_mlp.BLOCK},
    ),
    "gated_linear backward of gelu": (gated_linear._backward_kernel, {**GATED_BACKWARD, "GELU": True}),
    "gated_linear backward": (gated_linear._backward_kernel, GATED_BACKWARD),
    "gated_linear backward, a product of many ranks": (
        gated_linear._backward_kernel,
        {**GATED_BACKWARD, "RANK": 100, "RANKS": tiles.ranks_at_once(100)},
    ),
    "gated_linear backward, no product": (gated_linear._backward_kernel, {**GATED_BACKWARD, "RANK": 0}),
    "gated_mlp, completed": (gated_mlp._complete_kernel, COMPLETED),
    "linear_cross_entropy": (
        linear_cross_entropy._rows_kernel,
        {"logits_ptr": "*fp32", "labels_ptr": "*i64", "weights_ptr": "*fp32", "logprobs_ptr": "*fp32",
         "hits_ptr": "*i8", "dlogits_ptr": "*h", "num_columns": "i32", "softcap": "fp32", "GRADIENT": True,
         "CAPPED": True, "BLOCK": linear_cross_entropy.BLOCK},
    ),
    "nf4, plain": (
        nf4._dequantize_kernel,
        {"words_ptr": "*i32", "levels_ptr": "*fp32", "absmax_ptr": "*fp32", "nested_absmax_ptr": "*fp32",
         "nested_code_ptr": "*fp32", "offset_ptr": "*fp32", "out_ptr": "*h", "num_words": "i32", "offset_stride": "i32",
         "row_gap": "i32", "NESTED": False, "NESTED_SIZE": 256, "BLOCK_WORDS": 8, "ROW_WORDS": 0, "WORDS": nf4.WORDS},
    ),
    "nf4, nested, rows with gaps": (
        nf4._dequantize_kernel,
        {"words_ptr": "*i32", "levels_ptr": "*fp32", "absmax_ptr": "*u8", "nested_absmax_ptr": "*fp32",
         "nested_code_ptr": "*fp32", "offset_ptr": "*fp32", "out_ptr": "*h", "num_words": "i64", "offset_stride": "i32",
         "row_gap": "i32", "NESTED": True, "NESTED_SIZE": 256, "BLOCK_WORDS": 8, "ROW_WORDS": 512, "WORDS": nf4.WORDS},
    ),
    "copies": (
        copies._copy_kernel,
        {"table_ptr": "*i64", "scales_ptr": "*fp32", "like_ptr": "*h", "FIELDS": copies.FIELDS, "BLOCK": copies.BLOCK},
    ),
    "fp8, codes transposed": (
        fp8._transpose_kernel,
        {"codes_ptr": "*i32", "out_ptr": "*i32", "row_words": "i32", "column_words": "i32", "TILE": fp8.TILE},
    ),
}  # fmt: skip
FP8_ROWS = {
    "x_ptr": "*h", "scale_ptr": "*fp32", "codes_ptr": "*fp8e4nv", "scales_ptr": "*fp32", "x_stride": "i32",
    "width": "i32", "LARGEST": fp8.LARGEST, "LEAST": fp8.LEAST, "SCALED": True,
}  # fmt: skip
NF4_SOURCE = {
    "words_ptr": "*i32", "levels_ptr": "*fp32", "absmax_ptr": "*u8", "nested_absmax_ptr": "*fp32",
    "nested_code_ptr": "*fp32", "offset_ptr": "*fp32", "largest_ptr": "*fp32", "out_ptr": "*fp8e4nv",
    "offset_stride": "i32", "LARGEST": fp8.LARGEST, "NESTED": True, "NESTED_SIZE": 256, "BLOCK_WORDS": 8,
}  # fmt: skip
FP8_KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fp8 rows": (fp8._rows_kernel, {**FP8_ROWS, "WHOLE": True, "BLOCK": 4096}),
    "rms_norm forward with fp8 rows": (
        rms_norm._forward_kernel,
        {**NORM_FORWARD, "codes_ptr": "*fp8e4nv", "ROWS": True},
    ),
    "gated_linear backward, its largest numbers": (
        gated_linear._backward_kernel,
        {**GATED_BACKWARD, "FIND_LARGEST": True},
    ),
    "fp8 rows of known largest numbers": (
        fp8._rows_of_largest_kernel,
        {"x_ptr": "*h", "scale_ptr": "*fp32", "largest_ptr": "*i32", "codes_ptr": "*fp8e4nv", "scales_ptr": "*fp32",
         "num_rows": "i32", "width": "i32", "x_stride": "i32", "LARGEST": fp8.LARGEST, "LEAST": fp8.LEAST,
         "SCALED": True, "ROWS": fp8.ROWS, "COLUMNS": fp8.COLUMNS},
    ),
    "nf4 to fp8": (nf4_fp8._codes_kernel, {**NF4_SOURCE, "num_words": "i32", "ROW_WORDS": 512, "WORDS": nf4.WORDS}),
    "nf4 to fp8, transposed": (
        nf4_fp8._turned_kernel,
        {**NF4_SOURCE, "num_rows": "i32", "row_words": "i32", "ROWS": nf4_fp8.ROWS, "WORDS": nf4_fp8.ROW_WORDS},
    ),
    "fp8 rows, read twice": (fp8._rows_kernel, {**FP8_ROWS, "WHOLE": False, "BLOCK": fp8.WIDE_BLOCK}),
}  # fmt: skip
"""Those whose numbers no card before Hopper knows."""


@pytest.mark.parametrize("card", ["H100", "B200"])
@pytest.mark.parametrize("name", FP8_KERNELS)
def test_fp8_compiles(name: str, card: str) -> None:
    compile_for(*FP8_KERNELS[name], card)


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles(name: str, card: str) -> None:
    compile_for(*KERNELS[name], card)


def compile_for(kernel: Any, arguments: dict[str, Any], card: str) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    half = "fp16" if CARDS[card] < 80 else "bf16"
    signature = {
        key: value.replace("*h", f"*{half}") if isinstance(value, str) else "constexpr"
        for key, value in arguments.items()
    }
    signature = {key: signature[key] for key in kernel.arg_names}
    constants = {key: value for key, value in arguments.items() if not isinstance(value, str)}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", CARDS[card], 32))
    assert f"sm_{CARDS[card]}" in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 1000
    return compiled
