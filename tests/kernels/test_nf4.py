"""NF4 tensors: what is refused, joining and cutting by rows, chunks, memory. Parity: tests/parity/test_nf4.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.kernels import nf4
from whippet.kernels.nf4 import NF4Tensor, dequantize_nf4, join_rows, quantize_nf4, slice_rows


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float, dtype: torch.dtype) -> None:
    weight = weights(8, 100).to(dtype)
    weight[3, 7] = bad
    with pytest.raises(
        ValueError, match=r"layers\.0\.q_proj: NF4 needs finite weights.*among weights 256 to 319 of 800"
    ):
        quantize_nf4(weight, name="layers.0.q_proj")


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"met torch\.float64"):
        quantize_nf4(weights(4, 64).double())


def test_weights_whose_mean_absmax_overflows_are_refused() -> None:
    weight = torch.full((4, 64), 3e38)
    with pytest.raises(ModelError, match="too large to be quantised doubly"):
        quantize_nf4(weight)
    assert dequantize_nf4(quantize_nf4(weight, double=False)).isfinite().all()


def test_parts_of_the_wrong_size_are_refused() -> None:
    good = quantize_nf4(weights(4, 64))
    with pytest.raises(ModelError, match="need 128 code bytes and 4 absmax"):
        NF4Tensor(good.codes[:-1], good.absmax, good.shape, good.dtype)


def test_size_is_about_four_bits_a_weight() -> None:
    weight = quantize_nf4(weights(1024, 1024))
    assert 8 * weight.nbytes / weight.numel == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=0.01)


@pytest.mark.parametrize("double", [False, True])
def test_a_strided_weight_equals_its_copy(double: bool) -> None:
    wide = weights(70, 200)
    turned = quantize_nf4(wide.T, double=double)
    copied = quantize_nf4(wide.T.contiguous(), double=double)
    assert torch.equal(turned.codes, copied.codes) and torch.equal(turned.absmax, copied.absmax)


@pytest.mark.parametrize("double", [False, True])
def test_chunks_do_not_change_the_result(double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(123, 431)
    whole = quantize_nf4(weight, double=double)
    expected = dequantize_nf4(whole, torch.bfloat16)
    monkeypatch.setattr(nf4, "CHUNK", 64 * 3)
    monkeypatch.setattr(nf4, "CPU_CHUNK", 32 * 5)
    pieces = quantize_nf4(weight, double=double)
    assert torch.equal(pieces.codes, whole.codes) and torch.equal(pieces.absmax, whole.absmax)
    assert torch.equal(dequantize_nf4(pieces, torch.bfloat16), expected)


def test_out_is_written_and_returned() -> None:
    weight = quantize_nf4(weights(30, 50))
    buffer = torch.empty(1500, dtype=torch.bfloat16)
    result = dequantize_nf4(weight, torch.bfloat16, out=buffer)
    assert result.shape == (30, 50) and result.data_ptr() == buffer.data_ptr()
    assert torch.equal(result, dequantize_nf4(weight, torch.bfloat16))


def assert_joins_exactly(parts: list[NF4Tensor], *, stays_double: bool) -> NF4Tensor:
    joined = join_rows(parts)
    assert (joined.nested_absmax is not None) == stays_double
    for dtype in nf4.DTYPES:
        assert torch.equal(dequantize_nf4(joined, dtype), torch.cat([dequantize_nf4(part, dtype) for part in parts]))
    return joined


def test_joined_parts_keep_double_quantisation_where_their_groups_are_full() -> None:
    parts = [quantize_nf4(weights(rows, 128, seed=rows) * rows) for rows in (256, 128, 77)]
    joined = assert_joins_exactly(parts, stays_double=True)
    assert joined.offset is not None and len(joined.offset.unique()) == 3
    again = assert_joins_exactly([slice_rows(joined, 0, 384), parts[2]], stays_double=True)
    assert torch.equal(again.codes, joined.codes)


def test_joined_parts_fold_absmax_where_groups_are_not_full() -> None:
    assert_joins_exactly([quantize_nf4(weights(rows, 64, seed=rows)) for rows in (10, 5, 3)], stays_double=False)


def test_joined_parts_fold_absmax_where_one_is_plain() -> None:
    parts = [quantize_nf4(weights(256, 64)), quantize_nf4(weights(256, 64, seed=1), double=False)]
    assert_joins_exactly(parts, stays_double=False)
    assert_joins_exactly(parts[1:] * 2, stays_double=False)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="do not end at a border of 64"):
        join_rows([quantize_nf4(weights(3, 50)), quantize_nf4(weights(4, 50))])
    with pytest.raises(ModelError, match="need one width"):
        join_rows([quantize_nf4(weights(3, 64)), quantize_nf4(weights(3, 128))])


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("start", "stop"), [(0, 256), (256, 512), (1, 3), (100, 600), (511, 600)])
def test_sliced_rows_dequantise_alike(start: int, stop: int, double: bool) -> None:
    weight = quantize_nf4(weights(600, 64), double=double)
    part = slice_rows(weight, start, stop)
    assert part.shape == (stop - start, 64)
    assert torch.equal(dequantize_nf4(part), dequantize_nf4(weight)[start:stop])


def test_a_slice_through_a_block_is_refused() -> None:
    with pytest.raises(ModelError, match="cut a block of 64"):
        slice_rows(quantize_nf4(weights(10, 50)), 0, 3)
