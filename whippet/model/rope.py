"""Rotary position embeddings: which angle each pair of channels is turned by at each position.

In: a ``ModelConfig`` and positions. Out: tables of cosines and sines for ``kernels/rope.py``.
Formulas: Su et al. 2021 (https://arxiv.org/abs/2104.09864) for the plain frequencies; the ``llama3`` stretching is the
one of Meta's Llama 3.1 (https://github.com/meta-llama/llama-models, ``apply_scaling``).
T: tokens. E: head_dim / 2.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from whippet.model.config import ModelConfig, RopeScaling


def rope_tables(config: ModelConfig, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``position * frequency``, both fp32 ``[T, head_dim / 2]``, on the positions' device."""
    frequencies_E = _frequencies(config, positions_T.device)
    angles_TE = positions_T[:, None].float() * frequencies_E
    return angles_TE.cos(), angles_TE.sin()


@lru_cache(maxsize=16)
def _frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    return inverse_frequencies(config).to(device)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """fp32 ``[head_dim / 2]``: ``theta^(-2i / head_dim)``, stretched as ``config.rope_scaling`` says.

    Computed on the CPU, so that every device turns by the same angles.
    """
    exponents_E = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    plain_E = 1.0 / (config.rope_theta**exponents_E)
    scaling = config.rope_scaling
    if scaling is None:
        return plain_E
    if scaling.kind == "linear":
        return plain_E / scaling.factor
    return _llama3(plain_E, scaling)


def _llama3(plain_E: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are divided by ``factor``, short ones kept, those between blended by their wavelength."""
    turns_E = scaling.original_context / (2 * math.pi / plain_E)
    kept_E = (turns_E - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended_E = (1 - kept_E) * plain_E / scaling.factor + kept_E * plain_E
    stretched_E = torch.where(turns_E < scaling.low_freq_factor, plain_E / scaling.factor, blended_E)
    return torch.where(turns_E > scaling.high_freq_factor, plain_E, stretched_E)
