"""Parts of ``tokenizer.json``, the ``tokenizers`` library's format, that every make of ``tokenizer.model`` needs."""

from __future__ import annotations

from typing import Any

Special = tuple[str, int]
"""A special token as its text and its id."""


def added_token(token_id: int, content: str, *, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    """An entry of ``added_tokens``: found wherever it stands, in the text as it is or (``normalized``) normalised."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized}
    return {"id": token_id, "content": content, **flags, "special": special}


def post_processor(bos: Special | None, eos: Special | None) -> dict[str, Any]:
    """What puts ``bos`` before a text and ``eos`` after it; None for nothing."""

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        before = [] if bos is None else [{"SpecialToken": {"id": bos[0], "type_id": kind}}]
        after = [] if eos is None else [{"SpecialToken": {"id": eos[0], "type_id": kind}}]
        return [*before, {"Sequence": {"id": name, "type_id": kind}}, *after]

    known = {
        token[0]: {"id": token[0], "ids": [token[1]], "tokens": [token[0]]} for token in (bos, eos) if token is not None
    }
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": known,
    }
