"""The K-quants of GGUF: super-blocks of 256 numbers whose sub-blocks have scales that are quantised themselves.

``q4_k`` and ``q5_k``: eight sub-blocks of 32, each ``x = d s c - m t`` with codes c of 4 or 5 bit, 6-bit s and t, and
two fp16 numbers d and m for all. ``q6_k``: sixteen of 16, ``x = d s c`` with c of 6 bit and s of 8. The bytes are ours
to lay out as the format wants; which scales are best is searched: for each sub-block several widths of its range are
tried, for the codes of each the least-squares scale (and offset) is solved, and the one with the least weighted error
is kept. Large numbers weigh more, since what they are multiplied by does not know that they are rare.
All in torch, on the device of its input. B: super-blocks. S: sub-blocks of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

SUPER = 256
SCALE_LEVELS = 63
"""Of the 6-bit scales and offsets."""


def inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(x == 0, torch.zeros_like(x), 1 / x)


def halves(packed_B2: Tensor) -> Tensor:
    """Two bytes as the fp16 number that they are, in fp32 ``[B, 1]``."""
    return packed_B2.contiguous().view(torch.float16).float()


def affine_search(x: Tensor, levels: int, narrowest: float, tries: int) -> tuple[Tensor, Tensor]:
    """Scale and offset (not negative), each ``[..., 1]``, so that ``scale * code - offset`` with codes from 0 to
    ``levels`` is near ``x``. The widths tried lie 0.1 levels apart from ``levels + narrowest`` on."""
    weight = x.square().mean(-1, keepdim=True).sqrt() + x.abs()
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True)
    span = high - low
    sum_w, sum_x = weight.sum(-1, keepdim=True), (weight * x).sum(-1, keepdim=True)
    scale, lowest = span / levels, low
    codes = ((x - low) * inverse(scale)).round().clamp(0, levels)
    error = (weight * (scale * codes + lowest - x).square()).sum(-1, keepdim=True)
    for attempt in range(tries + 1):
        # Each try starts from the best offset so far, which is mostly nearer than the smallest number.
        steps = (levels + narrowest + 0.1 * attempt) * inverse(high - lowest)
        codes = (x - lowest).mul_(steps).round_().clamp_(0, levels)
        weighted = weight * codes
        sum_c, sum_cc = weighted.sum(-1, keepdim=True), (weighted * codes).sum(-1, keepdim=True)
        sum_xc = (weighted * x).sum(-1, keepdim=True)
        fixed = sum_w * sum_cc - sum_c.square()
        slope = (sum_w * sum_xc - sum_x * sum_c) / fixed
        start = (sum_cc * sum_x - sum_c * sum_xc) / fixed
        # The format has no room for an offset above zero; without one the scale alone is solved for.
        above = start > 0
        slope, start = torch.where(above, sum_xc / sum_cc, slope), start.clamp_max(0)
        off = codes.mul_(slope).add_(start).sub_(x).square_().mul_(weight).sum(-1, keepdim=True)
        better = (fixed > 0) & (off < error)
        error = torch.where(better, off, error)
        scale, lowest = torch.where(better, slope, scale), torch.where(better, start, lowest)
    return scale, -lowest


def symmetric_search(x: Tensor, levels: int) -> Tensor:
    """Scale ``[..., 1]`` of either sign, so that ``scale * code`` with codes from ``-levels`` to ``levels - 1`` is near
    ``x``. Errors weigh by x²."""
    size = x.abs()
    top = size.amax(-1, keepdim=True)
    # The side with the larger magnitude takes the code that has no counterpart.
    peak = torch.where((x == top).any(-1, keepdim=True), top, -top)
    weight = x.square()
    best = torch.zeros_like(peak)
    scale = torch.zeros_like(peak)
    for attempt in (0, *range(-9, 0), *range(1, 10)):
        codes = (x * -(levels + 0.1 * attempt) * inverse(peak)).round().clamp(-levels, levels - 1)
        weighted = weight * codes
        along, length = (weighted * x).sum(-1, keepdim=True), (weighted * codes).sum(-1, keepdim=True)
        solved = along * inverse(length)
        better = solved * along > best
        best, scale = torch.where(better, solved * along, best), torch.where(better, solved, scale)
    return scale


def _affine(blocks_B256: Tensor, levels: int, narrowest: float, tries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 ``[B, 8, 32]``, the 12 bytes of scales and offsets, and the fp16 pair ``[B, 2]``."""
    x_BSC = blocks_B256.view(-1, 8, 32)
    scale_BS, offset_BS = (found.squeeze(-1) for found in affine_search(x_BSC, levels, narrowest, tries))
    both = torch.stack([scale_BS, offset_BS], 1)
    step = both.amax(-1, keepdim=True) / SCALE_LEVELS
    held = (both * inverse(step)).round().clamp(0, SCALE_LEVELS)
    half = step.half()
    scale_BS1, offset_BS1 = (half.float() * held).unsqueeze(-1).unbind(1)
    codes = ((x_BSC + offset_BS1) * inverse(scale_BS1)).round().clamp(0, levels).to(torch.uint8)
    return codes, _pack_scales(*held.to(torch.uint8).unbind(1)), half.squeeze(-1)


def _pack_scales(scale_B8: Tensor, offset_B8: Tensor) -> Tensor:
    """Twice eight 6-bit numbers in 12 bytes. The first four of each have a byte; the two high bits of these bytes are
    those of the last four, whose low bits share the third four bytes."""
    high_scale, high_offset = scale_B8[:, 4:] >> 4 << 6, offset_B8[:, 4:] >> 4 << 6
    low = scale_B8[:, 4:] & 15 | (offset_B8[:, 4:] & 15) << 4
    return torch.cat([scale_B8[:, :4] | high_scale, offset_B8[:, :4] | high_offset, low], -1)


def _unpack_scales(packed_B12: Tensor) -> tuple[Tensor, Tensor]:
    first, second, low = packed_B12.split(4, -1)
    scale = torch.cat([first & 63, (low & 15) | (first >> 6 << 4)], -1)
    offset = torch.cat([second & 63, (low >> 4) | (second >> 6 << 4)], -1)
    return scale.float(), offset.float()


def _pack_nibbles(codes_BSC: Tensor) -> Tensor:
    """Of each two sub-blocks of 32 the first in the low half of 32 bytes."""
    pairs = codes_BSC.view(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)


def _unpack_nibbles(packed_B128: Tensor) -> Tensor:
    pairs = packed_B128.view(-1, 4, 1, 32)
    return torch.cat([pairs & 15, pairs >> 4], 2).view(-1, 8, 32)


def q4_k(blocks_B256: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes uint8 ``[B, 144]``, and the fp16 numbers in them."""
    codes, scales, half = _affine(blocks_B256, 15, -1.0, 20)
    return torch.cat([half.view(torch.uint8), scales, _pack_nibbles(codes)], -1), half


def from_q4_k(packed_BN: Tensor) -> Tensor:
    """The numbers fp32 ``[B, 256]``."""
    return _restore(packed_BN[:, :16], _unpack_nibbles(packed_BN[:, 16:].contiguous()))


def q5_k(blocks_B256: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes uint8 ``[B, 176]``, and the fp16 numbers in them. Bit s of 32 bytes are the fifth bits of sub-block
    s."""
    codes, scales, half = _affine(blocks_B256, 31, -0.5, 15)
    shifts_S1 = torch.arange(8, dtype=torch.uint8, device=codes.device)[:, None]
    fifth = ((codes >> 4) << shifts_S1).sum(1, dtype=torch.uint8)
    return torch.cat([half.view(torch.uint8), scales, fifth, _pack_nibbles(codes & 15)], -1), half


def from_q5_k(packed_BN: Tensor) -> Tensor:
    """The numbers fp32 ``[B, 256]``."""
    shifts_S1 = torch.arange(8, dtype=torch.uint8, device=packed_BN.device)[:, None]
    fifth = (packed_BN[:, None, 16:48] >> shifts_S1) & 1
    return _restore(packed_BN[:, :16], _unpack_nibbles(packed_BN[:, 48:].contiguous()) | fifth << 4)


def _restore(head_B16: Tensor, codes_BSC: Tensor) -> Tensor:
    step, offset_step = halves(head_B16[:, :2]), halves(head_B16[:, 2:4])
    scale, offset = _unpack_scales(head_B16[:, 4:])
    return ((step * scale)[..., None] * codes_BSC.float() - (offset_step * offset)[..., None]).flatten(1)


def q6_k(blocks_B256: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes uint8 ``[B, 210]``, and the fp16 numbers in them. Of each 128 numbers the low four bits fill 64 bytes,
    the later 64 numbers the high halves; the two high bits 32 bytes, four groups of 32 each a pair of bits."""
    x_BSC = blocks_B256.view(-1, 16, 16)
    scale_BS = symmetric_search(x_BSC, 32).squeeze(-1)
    top = scale_BS.abs().amax(-1, keepdim=True)
    step = torch.where((scale_BS == top).any(-1, keepdim=True), top, -top) / -128
    held = (scale_BS * inverse(step)).round().clamp(-128, 127)
    half = step.half()
    scale_BS1 = (half.float() * held)[..., None]
    codes = ((x_BSC * inverse(scale_BS1)).round().clamp(-32, 31) + 32).to(torch.uint8).view(-1, 2, 4, 32)
    low = codes & 15
    nibbles = low[:, :, :2] | low[:, :, 2:] << 4
    shifts_41 = torch.arange(0, 8, 2, dtype=torch.uint8, device=codes.device)[:, None]
    pairs = ((codes >> 4) << shifts_41).sum(2, dtype=torch.uint8)
    scales = held.to(torch.int8).view(torch.uint8)
    return torch.cat([nibbles.flatten(1), pairs.flatten(1), scales, half.view(torch.uint8)], -1), half


def from_q6_k(packed_BN: Tensor) -> Tensor:
    """The numbers fp32 ``[B, 256]``."""
    nibbles = packed_BN[:, :128].reshape(-1, 2, 2, 32)
    low = torch.cat([nibbles & 15, nibbles >> 4], 2)
    shifts_41 = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed_BN.device)[:, None]
    high = (packed_BN[:, 128:192].reshape(-1, 2, 1, 32) >> shifts_41) & 3
    codes = (low | high << 4).view(-1, 16, 16).float() - 32
    scales = packed_BN[:, 192:208].contiguous().view(torch.int8).float()
    return ((halves(packed_BN[:, 208:]) * scales)[..., None] * codes).flatten(1)
