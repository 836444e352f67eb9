"""Replies that keep to a grammar: a JSON schema, or a call of one of some tools in the model's own form.

Comes in: a tokenizer or renderer, and a schema or tools. Goes out: a ``requests.Grammar``, which tells before each
token which may come. The work is done by llguidance (MIT), which is imported when the first grammar is made.

What is promised: a reply that ends by itself keeps to the schema; one that is cut by the limit of tokens is a beginning
of such a reply. JSON is written on one line as ``json.dumps`` does, so no reply is lost in spaces. Keywords that
llguidance does not know are refused, those that only describe (``description``, ``nullable``) are passed over. Tokens
that are no text (special and added ones) come only where a form asks for them, and those that end a reply only where
it is complete.
"""

from __future__ import annotations

import copy
import json
import re
import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from whippet.chat.token_bytes import token_bytes
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import MissingExtra, UsageError

MAX_SCHEMA = 256 * 1024
"""Characters of a schema."""
MAX_TRIES = 200
"""Parts of a schema that are tried while the one that is wrong is looked for."""
LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
NO_FORCING = '%llguidance {"no_forcing": true}'
"""All ways to cut the same text into tokens are allowed: the model chooses. The library's own choice leans on encoding
parts of a text, and tokenizers of SentencePiece put a space before each."""
WHERE = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?")
MAPS, LISTS = ("properties", "patternProperties", "$defs", "definitions"), ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


class LlGrammar:
    """A grammar of llguidance over one tokenizer. ``trouble``: why it could not be kept to (a limit of llguidance was
    passed); the reply is then ended where it is. ``complete``: whether the reply may end here."""

    def __init__(self, tokenizer: Tokenizer, source: str, stop_ids: Collection[int] | None = None) -> None:
        import llguidance

        self.trouble: str | None = None
        self._stop_ids = frozenset(tokenizer.stop_ids if stop_ids is None else stop_ids)
        if not self._stop_ids:
            raise UsageError("this tokenizer knows no token that ends a reply, so none can be constrained")
        self._words = -(-tokenizer.vocab_size // 32)
        self._stops = _bits(self._stop_ids, self._words)
        self._matcher = llguidance.LLMatcher(_vocabulary(tokenizer), source, log_level=0)
        self.allowed()
        if self.trouble is not None:
            raise UsageError(f"no reply can keep to this grammar: {self.trouble}")

    @property
    def complete(self) -> bool:
        return self.trouble is None and bool(self._matcher.is_accepting())

    def allowed(self) -> Tensor:
        """int32 [ceil(V / 32)] on the CPU, V of the tokenizer: bit ``i % 32`` of word ``i // 32`` is set where token
        ``i`` may come."""
        mask = np.zeros(self._words, dtype=np.int32)
        if self.trouble is None and not self._matcher.is_stopped():
            mask[:] = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)[: self._words]
            mask &= ~self._stops
            self._check()
        if self.trouble is not None or self._matcher.is_accepting():
            mask |= self._stops
        elif not mask.any():
            self.trouble = "no token of the vocabulary goes on from here"
            mask |= self._stops
        return torch.from_numpy(mask)

    def copy(self) -> LlGrammar:
        """The same grammar for another reply, from where this one is; making it anew would read the schema again."""
        made = copy.copy(self)
        made._matcher = self._matcher.deep_copy()
        return made

    def accept(self, token_id: int) -> None:
        """The token that was drawn; never one that ``allowed`` shuts out."""
        if self.trouble is None and token_id not in self._stop_ids:
            self._matcher.consume_token(token_id)
            self._check()

    def _check(self) -> None:
        if self.trouble is None and self._matcher.is_error():
            self.trouble = _line(self._matcher.get_error())


def json_schema_grammar(
    tokenizer: Tokenizer, schema: Mapping[str, Any] | bool, stop_ids: Collection[int] | None = None
) -> LlGrammar:
    """A reply that is JSON of ``schema``. ``stop_ids`` may end it, by default the tokenizer's own. UsageError names
    the place in a schema that is wrong or not supported."""
    return LlGrammar(tokenizer, compiled(tokenizer, schema, "the schema"), stop_ids)


def compiled(tokenizer: Tokenizer, schema: Mapping[str, Any] | bool, where: str) -> str:
    """``schema`` as llguidance's source; UsageError if it cannot be kept to."""
    _needed()
    value = laid_out(schema, where)
    if complaint := _complaint(tokenizer, value):
        place = _place(tokenizer, value, complaint)
        raise UsageError(f"{where}: {place + ': ' if place else ''}{complaint}")
    return _source(value)


def laid_out(schema: Mapping[str, Any] | bool, where: str) -> Any:
    """A schema with our layout in it, which llguidance reads from ``x-guidance``."""
    if isinstance(schema, bool):
        return {"x-guidance": LAYOUT} if schema else False
    if not isinstance(schema, Mapping):
        raise UsageError(f"{where}: wanted an object, met {schema!r:.40}")
    made = {**schema, "x-guidance": LAYOUT}
    try:
        text = json.dumps(made, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{where}: is no JSON: {error}") from error
    if len(text) > MAX_SCHEMA:
        raise UsageError(f"{where}: has {len(text)} characters, wanted at most {MAX_SCHEMA}")
    return made


def _source(schema: Any) -> str:
    return f"{NO_FORCING}\nstart: %json {json.dumps(schema)}\n"


def _complaint(tokenizer: Tokenizer, schema: Any) -> str:
    """What llguidance says against a schema, '' if nothing."""
    import llguidance

    return _line(llguidance.LLMatcher.validate_grammar(_source(schema), _vocabulary(tokenizer)))


def _place(tokenizer: Tokenizer, schema: Any, complaint: str) -> str:
    """The innermost part of ``schema`` that draws the same complaint, such as ``properties.city``."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
    path: list[str] = []
    tries = 0
    within = _parts(schema)
    while (part := next(within, None)) is not None and tries < MAX_TRIES:
        tries += 1
        name, inner = part
        alone = {**shared, **inner, "x-guidance": LAYOUT} if isinstance(inner, dict) else inner
        if _complaint(tokenizer, alone) == complaint:
            path.append(name)
            within = _parts(inner)
    return ".".join(path)


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas right below ``schema``, with their keys."""
    if not isinstance(schema, dict):
        return
    for key in MAPS:
        if isinstance(schema.get(key), dict):
            yield from ((f"{key}.{name}", inner) for name, inner in schema[key].items())
    for key in LISTS:
        if isinstance(schema.get(key), list):
            yield from ((f"{key}[{i}]", inner) for i, inner in enumerate(schema[key]))
    yield from ((key, schema[key]) for key in SINGLE if isinstance(schema.get(key), dict))


_VOCABULARIES: weakref.WeakKeyDictionary[Tokenizer, Any] = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """llguidance's tokenizer for ours; it is made once (128,000 tokens take some tenths of a second)."""
    if tokenizer not in _VOCABULARIES:
        import llguidance

        wrapped = llguidance.TokenizerWrapper(_Tokens(tokenizer))
        _VOCABULARIES[tokenizer] = llguidance.LLTokenizer(wrapped, n_vocab=tokenizer.vocab_size)
    return _VOCABULARIES[tokenizer]


class _Tokens:
    """A vocabulary as llguidance wants it told. Ends are ours to set, so it is given any one of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = token_bytes(tokenizer)
        self.special_token_ids = sorted({*tokenizer.added_tokens.values(), *tokenizer.stop_ids})
        self.eos_token_id = min(tokenizer.stop_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self._tokenizer = weakref.ref(tokenizer)  # what is kept for a tokenizer must not keep it

    def __call__(self, text: str | bytes) -> list[int]:
        tokenizer = self._tokenizer()
        assert tokenizer is not None
        return tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _needed() -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise MissingExtra("llguidance", "structured", "a reply that keeps to a schema") from error


def _bits(ids: Collection[int], words: int) -> npt.NDArray[np.int32]:
    mask = np.zeros(words, dtype=np.uint32)
    for token_id in ids:
        if token_id // 32 < words:
            mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    return mask.view(np.int32)


def _line(message: str) -> str:
    """What a message of llguidance says, without the grammar that it quotes and the position in it."""
    lines = WHERE.sub("", message.split("<state>")[0]).splitlines()
    # One about a regular expression draws first, and then says what is wrong.
    said = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    return said.strip()[:300]
