"""Rotary embeddings in a ``config.json``: read in both spellings of transformers, written in the older one.

v4 has ``rope_theta`` and ``rope_scaling``, v5 has ``rope_parameters`` with theta inside. Where both are present
``rope_scaling`` takes the place of ``rope_parameters``, and a theta inside the table that counts wins over one outside,
as in transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from whippet.errors import ModelError
from whippet.model.config import ModelConfig, RopeKind, RopeScaling
from whippet.model.config_keys import Keys

PLAIN_THETA = 10000.0
KINDS: Mapping[str, RopeKind] = {
    "linear": "linear",
    "llama3": "llama3",
    "longrope": "longrope",
    "yarn": "yarn",
}
BETA_FAST, BETA_SLOW = 32.0, 1.0
"""What YaRN takes where a config says nothing."""


def read_rope(
    keys: Keys,
    context: int,
    head_dim: int,
    *,
    kinds: Mapping[str, RopeKind] = KINDS,
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
    scaling = _scaling(params, keys, context, head_dim, kinds, original)
    if scaling is not None and scaling.kind == "yarn" and theta <= 1:
        raise ModelError(f"{keys.where}: rope_theta is {theta:g}, and must be above 1 for yarn")
    return theta, scaling


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
    known = {name: kind for name, kind in KINDS.items() if kind != "yarn"}  # no published model has both
    scaling = _scaling(params, keys, context, head_dim, known, None)
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
    if scaling.kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "beta_fast": scaling.high_freq_factor,
            "beta_slow": scaling.low_freq_factor,
            "truncate": scaling.truncate,
            "attention_factor": scaling.attention_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
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
    kinds: Mapping[str, RopeKind],
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
    if kind == "yarn":
        return _yarn(params, context, before)
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


def _yarn(params: Keys, context: int, original: int) -> RopeScaling:
    """The attention factor is 0.1 ln(s) + 1 for a context s times as long, unless it is told, or ``mscale`` and
    ``mscale_all_dim`` are: then the same with each of them times ln(s), the one by the other (DeepSeek)."""
    factor = params.real("factor", context / original)
    fast, slow = params.real("beta_fast", BETA_FAST), params.real("beta_slow", BETA_SLOW)
    if fast <= slow:
        raise ModelError(f"{params.where}: beta_fast must be above beta_slow")

    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    implied = grown(1.0)
    if params.config.get("mscale") and params.config.get("mscale_all_dim"):
        implied = grown(params.real("mscale")) / grown(params.real("mscale_all_dim"))
    return RopeScaling(
        "yarn",
        factor,
        low_freq_factor=slow,
        high_freq_factor=fast,
        truncate=params.flag("truncate", True),
        original_context=original,
        attention_factor=params.real("attention_factor", implied),
    )


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
