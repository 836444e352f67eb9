"""Rotary position embeddings: which angle each pair of channels is turned by at each position.

In: a ``ModelConfig`` and positions. Out: tables of cosines and sines for ``kernels/rope.py``.
Formulas: Su et al. 2021 (https://arxiv.org/abs/2104.09864) for the plain frequencies; the ``llama3`` stretching is the
one of Meta's Llama 3.1 (https://github.com/meta-llama/llama-models, ``apply_scaling``), LongRoPE that of Ding et al.
2024 (https://arxiv.org/abs/2402.13753): a document that is longer than the original context is turned, all of it, by
other frequencies than a shorter one. Each document of a packed stream is looked at alone. YaRN is that of Peng et al.
2023 (https://arxiv.org/abs/2309.00071, section 3.4), as its authors' code and transformers compute it.
T: tokens. E: head_dim / 2.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from whippet.model.config import ModelConfig, RopeScaling

Tables = tuple[Tensor, Tensor]


def rope_tables(config: ModelConfig, positions_T: Tensor, cu_seqlens: Tensor) -> tuple[Tables, Tables]:
    """Cosine and sine of ``position * frequency``, both fp32 ``[T, head_dim / 2]``, on the positions' device: those of
    layers that attend to all tokens, and those of layers with a window (often the same).

    ``cu_seqlens``: borders of the documents, int32. A document ends at the position of its last token.
    """
    device, scaling = positions_T.device, config.rope_scaling
    if scaling is not None and scaling.kind == "longrope":
        # Found on the device, which nobody waits for; lengths would not do, with a cache in use.
        short_E, long_E = _frequencies(config, device)
        is_long_T1 = (_last_positions(positions_T, cu_seqlens) >= scaling.original_context)[:, None]
        frequencies = torch.where(is_long_T1, long_E, short_E)
        tables = _tables(positions_T, frequencies, scaling.attention_factor)
    else:
        factor = scaling.attention_factor if scaling is not None else 1.0
        tables = _tables(positions_T, _frequencies(config, device)[0], factor)
    if config.local_rope_theta is None:
        return tables, tables
    return tables, _tables(positions_T, _local_frequencies(config, device))


def _tables(positions_T: Tensor, frequencies: Tensor, factor: float = 1.0) -> Tables:
    angles_TE = positions_T[:, None].float() * frequencies
    cos_TE, sin_TE = angles_TE.cos(), angles_TE.sin()
    return (cos_TE, sin_TE) if factor == 1.0 else (cos_TE * factor, sin_TE * factor)


def _last_positions(positions_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """For each token the position of its document's last one, ``[T]``."""
    places_T = torch.arange(len(positions_T), device=positions_T.device, dtype=cu_seqlens.dtype)
    ends_T = cu_seqlens[torch.bucketize(places_T, cu_seqlens[1:], right=True) + 1]
    return positions_T[ends_T.long() - 1]


@lru_cache(maxsize=16)
def _frequencies(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    short_E, long_E = inverse_frequencies(config)
    return short_E.to(device), long_E.to(device)


@lru_cache(maxsize=16)
def _local_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    assert config.local_rope_theta is not None
    return _plain(config.local_rope_theta, config.head_dim).to(device)


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """fp32 ``[head_dim / 2]``: ``theta^(-2i / head_dim)``, stretched as ``config.rope_scaling`` says, for short and for
    long documents (of LongRoPE; else they are the same).

    Computed on the CPU, so that every device turns by the same angles.
    """
    plain_E = _plain(config.rope_theta, config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain_E, plain_E
    if scaling.kind == "longrope":
        short_E, long_E = (
            torch.tensor(factors, dtype=torch.float32, device="cpu")
            for factors in (scaling.short_factors, scaling.long_factors)
        )
        powers_E = config.rope_theta ** _exponents(config.head_dim)
        return 1.0 / (short_E * powers_E), 1.0 / (long_E * powers_E)
    if scaling.kind == "yarn":
        stretched_E = _yarn(config.rope_theta ** _exponents(config.head_dim), config, scaling)
    else:
        stretched_E = plain_E / scaling.factor if scaling.kind == "linear" else _llama3(plain_E, scaling)
    return stretched_E, stretched_E


def _plain(theta: float, head_dim: int) -> Tensor:
    return 1.0 / (theta ** _exponents(head_dim))


def _exponents(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim


def _llama3(plain_E: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are divided by ``factor``, short ones kept, those between blended by their wavelength."""
    turns_E = scaling.original_context / (2 * math.pi / plain_E)
    kept_E = (turns_E - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended_E = (1 - kept_E) * plain_E / scaling.factor + kept_E * plain_E
    stretched_E = torch.where(turns_E < scaling.low_freq_factor, plain_E / scaling.factor, blended_E)
    return torch.where(turns_E > scaling.high_freq_factor, plain_E, stretched_E)


def _yarn(powers_E: Tensor, config: ModelConfig, scaling: RopeScaling) -> Tensor:
    """As ``_llama3``, but blended by the place of the channel: the borders are those channels whose wave turns so often
    in the original context."""

    def channel(turns: float) -> float:
        original = scaling.original_context / (turns * 2 * math.pi)
        return config.head_dim * math.log(original) / (2 * math.log(config.rope_theta))

    first, last = channel(scaling.high_freq_factor), channel(scaling.low_freq_factor)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    last += 0.001 if first == last else 0  # as the authors' code does
    stretched_E = ((torch.arange(len(powers_E), dtype=torch.float32, device="cpu") - first) / (last - first)).clamp(
        0, 1
    )
    kept_E = 1 - stretched_E
    return 1.0 / (scaling.factor * powers_E) * (1 - kept_E) + 1.0 / powers_E * kept_E
