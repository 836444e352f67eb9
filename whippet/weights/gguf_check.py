"""A GGUF file read back: is it what was handed to the writer, to our reader and to the format's own?

Comes in: the file, what was planned, and digests of the bytes that were handed over. Goes out: nothing, or a GateError
that names the first thing that is not as it was meant. The logits are compared by ``whippet.export``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from whippet.chat.messages import Message
from whippet.chat.render import Renderer
from whippet.chat.template_variables import with_defaults
from whippet.errors import DataError, GateError
from whippet.report.compare import QUESTIONS
from whippet.weights.gguf import Plan, import_gguf
from whippet.weights.gguf_read import GGUFFile
from whippet.weights.gguf_words import NORMAL, USER_DEFINED


def check_file(file: GGUFFile, plan: Plan, digests: Mapping[str, str], digest: Callable[[Tensor], str]) -> None:
    """Every tensor is there with its name, shape, type and bytes, and no other; the ``gguf`` package sees the same."""
    if stray := sorted(set(plan) ^ set(file.tensors)):
        raise GateError(f"{file.path}: {stray[0]!r} is {'extra' if stray[0] in file.tensors else 'missing'}")
    theirs = {tensor.name: tensor for tensor in import_gguf().GGUFReader(file.path).tensors}
    for name, (kind, shape) in plan.items():
        info, other = file.tensors[name], theirs.get(name)
        if (info.kind, info.shape) != (kind, tuple(shape)):
            raise GateError(f"{file.path}: {name} is {info.kind.name} {info.shape}, not {kind.name} {tuple(shape)}")
        if digest(file.raw(name)) != digests[name]:
            raise GateError(f"{file.path}: {name} is not what was written")
        seen = None if other is None else (int(other.tensor_type), tuple(reversed(other.shape.tolist())))
        if other is None or seen != (kind.number, tuple(shape)) or other.data_offset != info.begin:
            raise GateError(f"{file.path}: the gguf package reads {name} otherwise than whippet does")


def check_words(file: GGUFFile, renderer: Renderer, pairs: Mapping[str, Any]) -> None:
    """Metadata, tokens and template are as they were meant, and a chat begins with as many BOS as in training."""
    for key, wanted in pairs.items():
        held = file.metadata.get(key)
        listed = held.tolist() if isinstance(held, np.ndarray) else held
        near = isinstance(wanted, float) and isinstance(listed, float) and abs(listed - wanted) <= 1e-6 * abs(wanted)
        if listed != wanted and not near and wanted != []:
            raise GateError(f"{file.path}: {key} is {str(listed)[:60]!r}, not {str(wanted)[:60]!r}")
    tokenizer = renderer.tokenizer
    kinds = file.metadata["tokenizer.ggml.token_type"].tolist()
    for token_id, text in enumerate(file.metadata["tokenizer.ggml.tokens"]):
        held, kind = tokenizer.token_text(token_id), kinds[token_id]
        if held is not None and kind != USER_DEFINED and held != text:
            raise GateError(f"{file.path}: token {token_id} is {text!r}, not {held!r}")
        if kind == NORMAL and token_id in tokenizer.special_ids:
            raise GateError(f"{file.path}: the special token {text!r} is written as an ordinary one")
    if renderer.template is None:
        return
    if file.metadata["tokenizer.chat_template"] != with_defaults(renderer.template.source, renderer.variables):
        raise GateError(f"{file.path}: the chat template is not the one that was trained with")
    adds, bos = file.metadata["tokenizer.ggml.add_bos_token"], tokenizer.bos_id
    for question in QUESTIONS:
        try:
            ids = renderer.prompt_ids([Message("user", question)])
        except DataError:
            continue
        # llama.cpp renders the template, takes BOS off its start if it is to add one itself, and adds it.
        rendered = ids[1:] if adds and ids[:1] == [bos] else ids
        if ([bos] if adds else []) + rendered != ids or ids[:2] == [bos, bos]:
            raise GateError(f"{file.path}: add_bos_token is {adds}, and a chat was trained with ids {ids[:4]} at first")
