"""A tokenizer and its chat template as metadata of a GGUF file.

Comes in: a ``Renderer`` and the tokenizer's ``tokenizer.json``. Goes out: pairs of key and value. Two sorts are known
to llama.cpp: ``gpt2``, byte-level BPE, whose pre-tokenizer is named because the file holds no pattern; and ``llama``,
SentencePiece's BPE, whose pieces are joined by their scores. What is of neither sort is a ModelError.
"""

from __future__ import annotations

from typing import Any

from whippet.chat.messages import Message
from whippet.chat.render import CALL_END, Renderer
from whippet.chat.template_variables import with_defaults
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import DataError, ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens."""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2", _TEKKEN: "tekken"}
"""The pattern of a pre-tokenizer, and llama.cpp's name for it."""
SPACE = "▁"
ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>")
)
"""Tokens that llama.cpp takes for ends by their text, whatever the metadata say."""


def word_pairs(renderer: Renderer, described: dict[str, Any], vocab_size: int) -> tuple[dict[str, Any], list[str]]:
    """The metadata, and what a reader should know of it. ``described``: the content of ``tokenizer.json``."""
    tokenizer, model = renderer.tokenizer, described["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"gguf: the tokenizer is {model.get('type')}; known: BPE, byte-level or SentencePiece's")
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(f"gguf: the tokenizer has {tokenizer.vocab_size} tokens and the model {vocab_size} rows")
    pieces = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(tokenizer, vocab_size, model.get("unk_token") if pieces else None, pieces)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    pairs: dict[str, Any] = {
        "tokenizer.ggml.model": "llama" if pieces else "gpt2",
        "tokenizer.ggml.pre": "default" if pieces else pre_tokenizer(described),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
    }
    if pieces:
        pairs["tokenizer.ggml.scores"] = _scores(tokens, merges)
        pairs["tokenizer.ggml.add_space_prefix"] = _prefixes_space(described)
    else:
        pairs["tokenizer.ggml.merges"] = merges
    special, notes = _special(renderer)
    pairs |= special
    if pieces and (described.get("pre_tokenizer") or {}).get("type") == "Metaspace":
        notes.append("llama.cpp puts a space before every text, the tokenizer before none that begins with a space")
    if renderer.template is not None:
        pairs["tokenizer.chat_template"] = with_defaults(renderer.template.source, renderer.variables)
    return pairs, notes


def model_name(name: str, described: dict[str, Any]) -> str:
    """``general.name``, by which alone llama.cpp knows that Phi-3's special tokens take the spaces behind them."""
    strips = [token for token in described.get("added_tokens", []) if token.get("special") and token.get("rstrip")]
    known = any(part in name.lower() for part in ("phi-3", "phi3"))
    return f"{name} (Phi-3)" if strips and not known else name


def starts_with_bos(renderer: Renderer) -> bool:
    """Whether a chat begins with BOS as the model was trained; without a template whether a text does."""
    tokenizer = renderer.tokenizer
    if renderer.template is not None:
        try:
            ids = renderer.prompt_ids([Message("user", "a")])
            # Where BOS is also what opens a turn, the first one is that.
            return ids[:1] == [tokenizer.bos_id] and (tokenizer.adds_bos or ids.count(ids[0]) == 1)
        except DataError:
            pass  # some templates want more than one bare question
    return tokenizer.adds_bos


def _special(renderer: Renderer) -> tuple[dict[str, Any], list[str]]:
    """The ids of special tokens. A reply ends at three of them at most: end, end of turn, end of a message with a
    call."""
    tokenizer = renderer.tokenizer
    ends = sorted(renderer.stop_ids - {tokenizer.eos_id})
    calls_end = tokenizer.token_id(CALL_END)
    others = [token_id for token_id in ends if token_id != calls_end]
    turn_end = others[0] if others else None
    if len(others) > 1:
        # The turn's own end, by the template, rather than the end of a text.
        written = renderer.template.source if renderer.template is not None else ""
        named = [token_id for token_id in others if (tokenizer.token_text(token_id) or "\0") in written]
        turn_end = next(iter(named), turn_end)
    ids = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "eot": turn_end,
        "eom": calls_end if calls_end in ends else None,
        "unknown": tokenizer.token_id(tokenizer.named_tokens.get("unk_token", "")),
        "padding": tokenizer.pad_id,
    }
    known = {name: token_id for name, token_id in ids.items() if token_id is not None}
    pairs: dict[str, Any] = {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in known.items()}
    pairs["tokenizer.ggml.add_bos_token"] = tokenizer.bos_id is not None and starts_with_bos(renderer)
    pairs["tokenizer.ggml.add_eos_token"] = renderer.template is None and tokenizer.adds_eos
    texts = [tokenizer.token_text(token_id) for token_id in others if token_id != turn_end]
    lost = [repr(text) for text in texts if text not in ENDS]
    return pairs, [f"a GGUF file has no place for the further end tokens {', '.join(lost)}"] if lost else []


def _tokens(tokenizer: Tokenizer, vocab_size: int, unknown: str | None, pieces: bool) -> tuple[list[str], list[int]]:
    """Every row of the embedding by the text of its token, and the type of each."""
    tokens, kinds = [], []
    added = set(tokenizer.added_tokens.values())
    for token_id in range(vocab_size):
        text = tokenizer.token_text(token_id)
        if text is None:
            text, kind = f"[PAD{token_id}]", UNUSED
        elif text == unknown:
            kind = UNKNOWN
        elif token_id in tokenizer.special_ids:
            kind = CONTROL
        elif token_id in added:
            # These are looked for in the text itself, before its spaces are written otherwise.
            text, kind = text.replace(SPACE, " ") if pieces else text, USER_DEFINED
        else:
            kind = BYTE if pieces and len(text) == 6 and text.startswith("<0x") and text[5] == ">" else NORMAL
        tokens.append(text)
        kinds.append(kind)
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The earlier the merge that makes a piece, the higher its score; what no merge makes is joined by none."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks[token]) if token in ranks else -1e6 for token in tokens]


def pre_tokenizer(described: dict[str, Any]) -> str:
    """llama.cpp's name for how byte-level text is cut before merging."""
    outer = described.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    shown = [step.get("type") for step in steps]
    plain = steps[-1].get("type") == "ByteLevel" and not steps[-1].get("add_prefix_space")
    if plain and shown == ["ByteLevel"] and steps[0].get("use_regex"):
        return "gpt-2"
    if plain and shown == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex"):
        return "smollm"
    if plain and shown == ["Split", "ByteLevel"] and not steps[1].get("use_regex"):
        name = PATTERNS.get(steps[0].get("pattern", {}).get("Regex", ""))
        if name is not None and steps[0].get("behavior") in ("Isolated", "Removed"):
            return name
    raise ModelError(
        f"gguf: llama.cpp's name for this pre-tokenizer ({', '.join(map(str, shown))}) is not known; known: "
        f"gpt-2, smollm, {', '.join(PATTERNS.values())}"
    )


def _prefixes_space(described: dict[str, Any]) -> bool:
    """Whether SentencePiece's mark is put before a text."""
    normalizer, cut = described.get("normalizer") or {}, described.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replaced = [step for step in steps if step.get("type") == "Replace"]
    prepended = [step for step in steps if step.get("type") == "Prepend"]
    if len(replaced) + len(prepended) != len(steps) or any(step.get("prepend") != SPACE for step in prepended):
        raise ModelError("gguf: the tokenizer's normalizer is not what SentencePiece does; llama.cpp would not do it")
    return bool(prepended) or (cut.get("type") == "Metaspace" and cut.get("prepend_scheme") != "never")
