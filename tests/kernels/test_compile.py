"""Every kernel compiles for the cards that it is meant for: no GPU is needed to know that.

The interpreter runs what a compiler may refuse. Here Triton compiles each kernel to the machine code of a T4, an A100,
an H100 and a B200, with the types and constants that a model gives it.
"""

from __future__ import annotations

from typing import Any

import pytest

from whippet.kernels import gated_linear, gated_mlp, linear_cross_entropy, nf4, rms_norm, rope

triton = pytest.importorskip("triton")

CARDS = {"T4": 75, "A100": 80, "H100": 90, "B200": 100}
NORM = {"width": "i32", "BLOCK": 4096}
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rms_norm forward": (
        rms_norm._forward_kernel,
        {"x_ptr": "*h", "residual_ptr": "*h", "weight_ptr": "*h", "sum_ptr": "*h", "y_ptr": "*h", "rstd_ptr": "*fp32",
         "x_stride": "i32", "residual_stride": "i32", "y_stride": "i32", "eps": "fp32", "ADD": True, **NORM},
    ),
    "rms_norm backward": (
        rms_norm._backward_kernel,
        {"grad_ptr": "*h", "x_ptr": "*h", "weight_ptr": "*h", "rstd_ptr": "*fp32", "grad_sum_ptr": "*h", "dx_ptr": "*h",
         "grad_stride": "i32", "x_stride": "i32", "grad_sum_stride": "i32", "ADD": True, **NORM},
    ),
    "rope": (
        rope._turn_kernel,
        {"x_ptr": "*h", "cos_ptr": "*fp32", "sin_ptr": "*fp32", "y_ptr": "*h", "x_stride": "i32", "num_heads": "i32",
         "turned_heads": "i32", "BACK": True, "HALF": 64, "HALF_BLOCK": 64, "HEADS": rope.HEADS},
    ),
    "gated_mlp forward": (
        gated_mlp._forward_kernel,
        {"x_ptr": "*h", "y_ptr": "*h", "x_stride": "i32", "width": "i32", "BLOCK": gated_mlp.BLOCK},
    ),
    "gated_mlp backward": (
        gated_mlp._backward_kernel,
        {"grad_ptr": "*h", "x_ptr": "*h", "dx_ptr": "*h", "grad_stride": "i32", "x_stride": "i32", "width": "i32",
         "BLOCK": gated_mlp.BLOCK},
    ),
    "gated_linear backward": (
        gated_linear._backward_kernel,
        {"hidden_ptr": "*h", "x_ptr": "*h", "x_stride": "i32", "width": "i32", "BLOCK": gated_mlp.BLOCK},
    ),
    "linear_cross_entropy": (
        linear_cross_entropy._rows_kernel,
        {"logits_ptr": "*fp32", "labels_ptr": "*i64", "weights_ptr": "*fp32", "logprobs_ptr": "*fp32",
         "hits_ptr": "*i8", "dlogits_ptr": "*h", "num_columns": "i32", "GRADIENT": True,
         "BLOCK": linear_cross_entropy.BLOCK},
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
}  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles(name: str, card: str) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments = KERNELS[name]
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
