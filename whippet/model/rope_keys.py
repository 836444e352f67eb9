"""Rotary embeddings in a ``config.json``: read in both spellings of transformers, written in the older one.

v4 has ``rope_theta`` and ``rope_scaling``, v5 has ``rope_parameters`` with theta inside. Where both are present
``rope_scaling`` takes the place of ``rope_parameters``, and a theta inside the table that counts wins over one outside,
as in transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from whippet.errors import ModelError
from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.config_keys import Keys

PLAIN_THETA = 10000.0
KINDS: Mapping[str, Literal["linear", "llama3", "longrope"]] = {
    "linear": "linear",
    "llama3": "llama3",
    "longrope": "longrope",
}


def read_rope(
    keys: Keys,
    context: int,
    head_dim: int,
    *,
    kinds: Mapping[str, Literal["linear", "llama3", "longrope"]] = KINDS,
    original: int | None = None,
) -> tuple[float, RopeScaling | None]:
    """Theta, and how frequencies are stretched. ``kinds``: the names of ``rope_type`` that the family knows.
    ``original``: what an absent ``original_max_position_embeddings`` outside the table means (None: the table's own,
    or ``context``). ModelError for what is not computed."""
    new, old = keys.table("rope_parameters"), keys.table("rope_scaling")
    for table in (new, old):
        if any(isinstance(inner, dict) for inner in table.config.values()):
            raise ModelError(f"{table.where} differs between kinds of layers, which whippet does not compute")
    params = old if old.config else new
    theta = params.real("rope_theta", keys.real("rope_theta", PLAIN_THETA))
    keys.must_be("partial_rotary_factor", 1.0)
    return theta, _scaling(params, keys, context, head_dim, kinds, original)


def read_rope_of_kinds(
    keys: Keys, context: int, head_dim: int, *, theta: float, local: float
) -> tuple[float, RopeScaling | None, float]:
    """Theta and stretching of the layers that attend to everything, and the theta of those with a window, which are not
    stretched. ``theta`` and ``local``: what absent keys mean."""
    kinds = keys.table("rope_parameters")
    if stray := [key for key in kinds.config if key not in ("full_attention", "sliding_attention")]:
        raise ModelError(f"{kinds.where} has {stray[0]!r}; wanted full_attention and sliding_attention, a table each")
    full, windowed, old = kinds.table("full_attention"), kinds.table("sliding_attention"), keys.table("rope_scaling")
    params = Keys(full.config | old.config, old.where if old.config else full.where)
    _check_plain(windowed)
    scaling = _scaling(params, keys, context, head_dim, KINDS, None)
    theta = params.real("rope_theta", keys.real("rope_theta", theta))
    return theta, scaling, windowed.real("rope_theta", keys.real("rope_local_base_freq", local))


def rope_to_hf(config: ModelConfig) -> dict[str, Any] | None:
    """``rope_scaling`` in v4 spelling. Of Phi-3 that has exactly three keys, and the attention factor follows from the
    two contexts beside it; if it does not, it is told."""
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    if scaling.kind == "longrope":
        factors = {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
        implied = _attention_factor(config.context / scaling.original_context, scaling.original_context)
        told = {} if scaling.attention_factor == implied else {"attention_factor": scaling.attention_factor}
        return {"type": "longrope", **factors, **told}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def _scaling(
    params: Keys,
    keys: Keys,
    context: int,
    head_dim: int,
    kinds: Mapping[str, Literal["linear", "llama3", "longrope"]],
    original: int | None,
) -> RopeScaling | None:
    params.must_be("partial_rotary_factor", 1.0)
    named = _kind(params)
    if named == "default":
        return None
    if named not in kinds:
        raise ModelError(f"{params.where}: rope_type is {named!r}; known: {', '.join(['default', *kinds])}")
    kind = kinds[named]
    if kind == "linear":
        return RopeScaling(kind, params.real("factor"))
    outside = keys.config.get("original_max_position_embeddings") is not None or original is not None
    before = (keys if outside else params).integer("original_max_position_embeddings", original or context)
    if kind == "longrope":
        stretched = params.real("factor", context / before)
        if before == 1:
            raise ModelError(f"{params.where}: original_max_position_embeddings is 1, and must be more")
        return RopeScaling(
            kind,
            original_context=before,
            short_factors=params.reals("short_factor", head_dim // 2),
            long_factors=params.reals("long_factor", head_dim // 2),
            attention_factor=params.real("attention_factor", _attention_factor(stretched, before)),
        )
    scaling = RopeScaling(
        kind,
        params.real("factor"),
        low_freq_factor=params.real("low_freq_factor"),
        high_freq_factor=params.real("high_freq_factor"),
        original_context=before,
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ModelError(f"{params.where}: high_freq_factor must be above low_freq_factor")
    return scaling


def _kind(params: Keys) -> str:
    """The ``rope_type``; what is no text is shown as one, which no family knows."""
    kind = params.config.get("rope_type", params.config.get("type")) or "default"
    return kind if isinstance(kind, str) else str(kind)[:60]


def _check_plain(params: Keys) -> None:
    if _kind(params) != "default":
        raise ModelError(f"{params.where}: rope_type is {_kind(params)!r}; whippet computes only 'default'")


def _attention_factor(stretched: float, original: int) -> float:
    """What LongRoPE multiplies cosines and sines by (Ding et al. 2024, https://arxiv.org/abs/2402.13753)."""
    return 1.0 if stretched <= 1 else math.sqrt(1 + math.log(stretched) / math.log(original))
