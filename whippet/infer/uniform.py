"""Random numbers that depend on nothing but a seed and a place: the n-th of a seed is the same wherever it is drawn.

    u(seed, n) = (mix(key + (n + 1) * GAMMA) >> 11) / 2^53,   key = mix(seed)

``mix`` and ``GAMMA`` are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators", figure 14, with the constants of Vigna's splitmix64.c), whose n-th output needs no outputs before it. The
key is mixed once more, so that the streams of the seeds 0, 1, 2, … lie far apart.

Comes in: a seed on the host, keys and places on the device. Goes out: float64 in [0, 1), computed in int64 without a
generator, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)


def key(seed: int | None) -> int:
    """The key of a seed, as a signed 64-bit number; without a seed one that the system draws."""
    value = secrets.randbits(64) if seed is None else seed & MASK
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        value = (value ^ value >> shift) * factor & MASK
    return _signed(value ^ value >> SHIFTS[-1])


def uniform(key_B: Tensor, place_B: Tensor) -> Tensor:
    """float64 [B] in [0, 1): the number at ``place_B`` (int64, 0 or more) in the stream of ``key_B`` (int64)."""
    return (_shifted(bits(key_B, place_B), 11)).double() * 2.0**-53


def bits(key_B: Tensor, place_B: Tensor) -> Tensor:
    """The 64 bits behind ``uniform``, int64: the output number ``place_B`` of SplitMix64 with the state ``key_B``."""
    value_B = key_B + (place_B + 1) * _signed(GAMMA)  # int64 wraps as the generator wants
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        value_B = (value_B ^ _shifted(value_B, shift)) * _signed(factor)
    return value_B ^ _shifted(value_B, SHIFTS[-1])


def _shifted(value_B: Tensor, by: int) -> Tensor:
    """``value_B`` shifted right as an unsigned number."""
    return torch.bitwise_and(value_B >> by, MASK >> by)


def _signed(value: int) -> int:
    """The signed 64-bit number with the bits of ``value``."""
    return value - 2**64 if value >> 63 else value
