"""``params.json`` of Meta's original checkpoints: read into a ``ModelConfig``, and written.

The file says less than a config does. What is missing is what Meta's code holds fixed for each generation
(https://github.com/meta-llama/llama-models), told apart by what the file has: the context it was trained for, and how
far ``use_scaled_rope`` stretches it: 32 times for Llama 3.2's text models, which alone tie their matrices, and 8 times
for 3.1 and 3.3. A key ``rope_scaling_factor`` or ``max_seq_len`` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whippet.errors import ModelError, UsageError
from whippet.model.config import ModelConfig, RopeScaling
from whippet.model.families import config_from_hf, config_to_hf
from whippet.weights.files import read_json
from whippet.weights.header import TensorInfo

INTEGERS = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "max_seq_len")
REALS = ("norm_eps", "rope_theta", "ffn_dim_multiplier", "rope_scaling_factor")
KNOWN = {*INTEGERS, *REALS, "vocab_size", "use_scaled_rope", "max_batch_size", "model_parallel_size"}
LONGEST_WORDS = 128_000
"""Words from which on a vocabulary is Llama 3's."""


def read_params(path: Path) -> dict[str, Any]:
    """The parameters, checked, with what is left out filled in. Raises ModelError that names file and key."""
    params = read_json(path, limit=1 << 20)
    if strange := sorted(set(params) - KNOWN):
        raise ModelError(f"{path}: unknown key {strange[0][:60]!r}; whippet reads Llama 1 to 3.3 without images")
    found = {key: value for key, value in params.items() if value is not None}
    found = {"multiple_of": 256, "norm_eps": 1e-5, "rope_theta": 10000.0, "use_scaled_rope": False} | found
    for key in ("dim", "n_layers", "n_heads"):
        if key not in found:
            raise ModelError(f"{path}: the key {key} is missing")
    found.setdefault("n_kv_heads", found["n_heads"])
    for key in INTEGERS:
        if key in found and not (type(found[key]) is int and 0 < found[key] < 2**31):
            raise ModelError(f"{path}: {key} is {str(found[key])[:60]}, and must be a whole number above 0")
    for key in REALS:
        if key in found and not (type(found[key]) in (int, float) and 0 < found[key] < 1e30):
            raise ModelError(f"{path}: {key} is {str(found[key])[:60]}, and must be a number above 0")
    if type(found["use_scaled_rope"]) is not bool:
        raise ModelError(f"{path}: use_scaled_rope is {str(found['use_scaled_rope'])[:60]}, and must be true or false")
    if found["dim"] % found["n_heads"]:
        raise ModelError(f"{path}: dim {found['dim']} is no multiple of n_heads {found['n_heads']}")
    return found


def config_from_params(
    params: Mapping[str, Any], tensors: Mapping[str, TensorInfo], *, tied: bool, where: str
) -> ModelConfig:
    """The model that ``read_params`` describes. The vocabulary is what the embedding has: Llama 2 says -1 of it."""
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{where}: beside it wanted a tensor tok_embeddings.weight")
    vocabulary = embedding.shape[0]
    if params.get("vocab_size", -1) not in (-1, vocabulary):
        raise ModelError(f"{where}: vocab_size is {params['vocab_size']}, and tok_embeddings has {vocabulary} rows")
    scaling = None
    if params["use_scaled_rope"]:
        scaling = {
            "rope_type": "llama3",
            "factor": float(params.get("rope_scaling_factor", 32.0 if tied else 8.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": params["dim"],
        "intermediate_size": inner_size(params["dim"], params["multiple_of"], params.get("ffn_dim_multiplier")),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params["n_kv_heads"],
        "max_position_embeddings": params.get("max_seq_len", _context(params, vocabulary)),
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": float(params["rope_theta"]),
        "rope_scaling": scaling,
        "tie_word_embeddings": tied,
    }
    return config_from_hf(raw, where=where)


def params_of(config: ModelConfig) -> dict[str, Any]:
    """The ``params.json`` of a model. Raises UsageError for one that Meta's layout cannot describe."""
    plain = config_from_hf(config_to_hf(config, dtype="bfloat16"), where="config") == config
    square = config.num_heads * config.head_dim == config.hidden_size
    if config.family != "llama" or not plain or not square or config.qkv_bias or config.o_bias or config.mlp_bias:
        raise UsageError("Meta's layout holds Llama models without biases and with heads of hidden_size / num_heads")
    scaling = config.rope_scaling
    factor = None
    if scaling is not None:
        if scaling != RopeScaling("llama3", scaling.factor, 1.0, 4.0, 8192):
            raise UsageError("Meta's layout knows the rope scaling of Llama 3.1 to 3.3 alone")
        factor = None if scaling.factor == (32.0 if config.tie_embeddings else 8.0) else scaling.factor
    multiple, multiplier = _widening(config.hidden_size, config.intermediate_size)
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaling is not None,
        "rope_scaling_factor": factor,
        "vocab_size": config.vocab_size,
    }
    if _context(params, config.vocab_size) != config.context:
        params["max_seq_len"] = config.context
    return {key: value for key, value in params.items() if value is not None}


def inner_size(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Rows of w1: two thirds of 4 · dim, times the multiplier, rounded up to a multiple."""
    size = 8 * dim // 3
    size = size if multiplier is None else int(multiplier * size)
    return multiple_of * -(-size // multiple_of)


def _widening(dim: int, inner: int) -> tuple[int, float | None]:
    """A multiple_of and multiplier that give ``inner``: Llama's own for its shapes."""
    multiple = math.gcd(inner, 4096)
    for candidate in (256, 1024, 4096, multiple):
        for multiplier in (None, 1.3, 1.5):
            if inner_size(dim, candidate, multiplier) == inner:
                return candidate, multiplier
    multiplier = inner / (8 * dim // 3)
    while inner_size(dim, multiple, multiplier) < inner:
        multiplier = math.nextafter(multiplier, math.inf)
    return multiple, multiplier


def _context(params: Mapping[str, Any], vocabulary: int) -> int:
    """Tokens that a generation was trained for."""
    if params["use_scaled_rope"]:
        return 131072
    if vocabulary >= LONGEST_WORDS:
        return 8192
    if params["rope_theta"] == 1e6:  # Code Llama
        return 16384
    return 2048 if params["norm_eps"] == 1e-6 else 4096
