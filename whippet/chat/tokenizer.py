"""Text to token ids and back, for any checkpoint that has a ``tokenizer.json`` or a ``tokenizer.model``.

Comes in: a checkpoint's folder. Goes out: a ``Tokenizer`` with its special tokens, its end tokens and its chat
template. The ids are those of the ``tokenizers`` library; nothing here changes them. Files come from strangers: they
are read as data, by an allow-list of keys (``checkpoint_files.py``), and whatever they hold, nothing is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers

from whippet.chat.checkpoint_files import TokenizerFiles, read_tokenizer_files
from whippet.chat.checkpoint_templates import DEFAULT, FILE, FOLDER
from whippet.chat.template_variables import with_defaults
from whippet.chat.text_files import whole
from whippet.chat.text_stream import TextStream
from whippet.chat.tokenizer_json import post_processor
from whippet.errors import ModelError, UsageError

PAD_NAMES = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|PAD|>", "<PAD>", "<|padding|>")
PAD_WORD = re.compile(r"(?<![a-z])pad(?:ding)?(?![a-z])")
MEDIA = re.compile("image|video|vision|audio")
RESERVED_PARTS = ("reserved", "placeholder", "unused", "control", "extra_id")


class Tokenizer:
    """One checkpoint's tokenizer. ``load`` makes one; it does not change afterwards and may be used by threads.

    bos_id, eos_id, pad_id: ids of the special tokens, None where the checkpoint has none. ``pad_id`` is a token made
    for padding if the checkpoint names none and its vocabulary holds one.
    stop_ids: every token that ends a reply by the checkpoint's own files.
    special_ids: added tokens that are marked special. vocab_size: ids, added tokens included. num_bytes: of the file.
    adds_bos, adds_eos: what the tokenizer's own post-processor puts around a text.
    named_tokens: what the checkpoint calls bos_token, eos_token, unk_token and pad_token; templates may print them.
    chat_template: the checkpoint's template, None if it has none. chat_templates: all that it has, by name.
    """

    def __init__(self, core: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
        self._core = core
        self._files = files
        core.no_truncation()
        core.no_padding()
        self.num_bytes = len(files.tokenizer_json)
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True)
        added = core.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.added_tokens: dict[str, int] = {token.content: token_id for token_id, token in added.items()}
        around = core.encode("", add_special_tokens=True).ids
        self.bos_token, self.bos_id = self._special("bos_token", files.bos_token, None)
        self.eos_token, self.eos_id = self._special("eos_token", files.eos_token, next(iter(files.eos_ids), None))
        if self.bos_id is None and around and around[0] != self.eos_id:
            self.bos_id, self.bos_token = around[0], core.id_to_token(around[0])
        self.adds_bos = self.bos_id is not None and around[:1] == [self.bos_id]
        self.adds_eos = self.eos_id is not None and around[-1:] == [self.eos_id]
        ends = [token_id for token_id in map(self.token_id, files.turn_ends) if token_id is not None]
        listed = [*files.eos_ids, *ends, *([] if self.eos_id is None else [self.eos_id])]
        self.stop_ids = frozenset(token_id for token_id in listed if 0 <= token_id < self.vocab_size)
        self.pad_token, self.pad_id = self._special("pad_token", files.pad_token, files.pad_id)
        if self.pad_id is None:
            self.pad_token = next(iter(self._pad_like()), None)
            self.pad_id = self.token_id(self.pad_token) if self.pad_token is not None else None
        named = {"unk_token": files.unk_token, "pad_token": files.pad_token, "bos_token": self.bos_token or ""}
        named |= {"eos_token": self.eos_token or ""}
        self.named_tokens = {name: text for name, text in named.items() if text is not None}
        self.chat_templates = dict(files.templates)
        self.chat_template = files.templates.get(DEFAULT)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of the checkpoint in ``folder``; ModelError names the file that is missing or broken."""
        files = read_tokenizer_files(Path(folder))
        core = _build(files)
        for token_id, token in sorted(files.added_tokens.items()):
            _add_missing_token(core, token_id, token, files.folder)
        return cls(core, files)._as_configured()

    def add(self, texts: Sequence[str], *, special: bool = True) -> Tokenizer:
        """A tokenizer for which each of ``texts`` is also a token, found wherever it stands in a text.

        What the vocabulary already holds keeps its id; the others take the ids from ``vocab_size`` on, in order. A text
        that holds none of them gives the same ids as before. ``special`` tokens are left out by ``skip_special``. The
        model needs a row for each new id before it meets one (``weights/resize.py``). UsageError for a text that is
        empty, is given twice or cannot be UTF-8.
        """
        for place, text in enumerate(texts):
            if not text or text in texts[:place]:
                raise UsageError(f"tokens to add: {text!r:.60} is {'given twice' if text else 'empty'}")
            if not text.isascii():
                whole(text, "tokens to add")
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        made = [tokenizers.AddedToken(text, special=special, normalized=False) for text in texts]
        core.add_special_tokens(made) if special else core.add_tokens(made)
        return Tokenizer(core, replace(self._files, tokenizer_json=core.to_str().encode("utf-8"), added_tokens={}))

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Token ids of ``text``. Special tokens written in it are recognised; ``special_tokens`` adds BOS (and EOS)
        as the tokenizer itself does."""
        return list(self._core.encode(text, add_special_tokens=special_tokens).ids)

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """``encode`` for many texts at once, on several cores."""
        return [list(one.ids) for one in self._core.encode_batch_fast(list(texts), add_special_tokens=special_tokens)]

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each the span ``[start, end)`` of characters of ``text`` that it stands for."""
        encoded = self._core.encode(text, add_special_tokens=False)
        return list(encoded.ids), list(encoded.offsets)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return str(self._core.decode([int(token_id) for token_id in ids], skip_special_tokens=skip_special))

    def stream(self, *, skip_special: bool = False) -> TextStream:
        """A decoder that is fed one id at a time."""
        return TextStream(partial(self.decode, skip_special=skip_special))

    def token_id(self, text: str) -> int | None:
        """The id of the token written ``text``, None if there is none."""
        try:
            token_id = self._core.token_to_id(text)
        except UnicodeEncodeError:
            return None  # a command line that is no UTF-8 reaches us as lone surrogates, which no vocabulary holds
        return None if token_id is None else int(token_id)

    def token_text(self, token_id: int) -> str | None:
        """How the vocabulary writes a token: byte-level pieces look mangled, special tokens as in text."""
        text = self._core.id_to_token(token_id)
        return None if text is None else str(text)

    def check_pad(self, pad_token: str | None) -> None:
        """Raise ModelError if what exports would pad with is also what ends a reply.

        ``pad_token`` (``model.pad_token``) overrides the checkpoint's own. Training code of others masks the padding
        token in the loss; a model whose pad is its end token never learns to stop there.
        """
        where = "model.pad_token" if pad_token is not None else str(self._files.pad_where)
        token = pad_token if pad_token is not None else self.pad_token
        if token is None:
            return
        token_id = self.token_id(token)
        fix = self._pad_advice()
        if token_id is None:
            raise ModelError(f"{where}: pad token {token!r} is not in the vocabulary{fix}")
        if token_id in self._learnt_ends():
            raise ModelError(f"{where}: pad token {token!r} is also the end token; it needs one of its own{fix}")

    def save(
        self,
        folder: Path,
        *,
        chat_template: str | None = None,
        pad_token: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the tokenizer's files into ``folder``: ``tokenizer.json`` as it was read, byte for byte, and the rest
        in the layout that both generations of transformers read. ``chat_template`` and ``pad_token`` override. Of
        the checkpoint's further templates all are kept beside its own, or the one that was chosen in its place.
        ``variables`` are written into templates as what they take where they are told nothing else."""
        folder.mkdir(parents=True, exist_ok=True)
        template = chat_template if chat_template is not None else self.chat_template
        pad = pad_token if pad_token is not None else self.pad_token
        names = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": pad}
        names |= {"unk_token": self._files.unk_token}
        special = {key: name for key, name in names.items() if name is not None}
        config: dict[str, Any] = special | {
            "clean_up_tokenization_spaces": False,
            "model_max_length": self._files.model_max_length,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        if self._files.added_tokens:
            config["added_tokens_decoder"] = {str(key): value for key, value in self._files.added_tokens.items()}
        (folder / "tokenizer.json").write_bytes(self._files.tokenizer_json)
        if template is not None:
            config["chat_template"] = with_defaults(template, variables or {})
            (folder / FILE).write_bytes(config["chat_template"].encode("utf-8"))
        for name, source in self.chat_templates.items():
            if name != DEFAULT and template in (self.chat_template, source):
                (folder / FOLDER).mkdir(exist_ok=True)
                (folder / FOLDER / f"{name}.jinja").write_bytes(with_defaults(source, variables or {}).encode("utf-8"))
        _write_json(folder / "tokenizer_config.json", config)
        _write_json(folder / "special_tokens_map.json", special)

    def _as_configured(self) -> Tokenizer:
        """The same with BOS and EOS around texts as tokenizer_config.json says, where it says another thing than
        tokenizer.json; transformers does so too."""
        files = self._files
        bos = self.adds_bos if files.adds_bos is None else files.adds_bos and self.bos_id is not None
        eos = self.adds_eos if files.adds_eos is None else files.adds_eos and self.eos_id is not None
        if (bos, eos) == (self.adds_bos, self.adds_eos):
            return self
        before = (str(self.bos_token), int(self.bos_id or 0)) if bos else None
        after = (str(self.eos_token), int(self.eos_id or 0)) if eos else None
        value = json.loads(self._core.to_str()) | {"post_processor": post_processor(before, after)}
        text = json.dumps(value, ensure_ascii=False)
        changed = replace(files, tokenizer_json=text.encode("utf-8"), added_tokens={}, adds_bos=None, adds_eos=None)
        return Tokenizer(tokenizers.Tokenizer.from_str(text), changed)

    def _special(self, name: str, text: str | None, token_id: int | None) -> tuple[str | None, int | None]:
        """Text and id of a special token that the files name by one or the other; both None if the vocabulary lacks
        it, as some checkpoints name tokens that they do not have."""
        found = self.token_id(text) if text is not None else token_id
        if found is None or not 0 <= found < self.vocab_size:
            return None, None
        return (text if text is not None else self.token_text(found)), found

    def _learnt_ends(self) -> frozenset[int]:
        """The end tokens that a reply is trained to close with. A checkpoint's longer list of eos ids also holds
        tokens that merely stop generation, and padding with one of those harms nothing."""
        return self.stop_ids if self.eos_id is None else frozenset((self.eos_id,))

    def _pad_like(self) -> list[str]:
        """Special tokens that are made for padding and end nothing, best first."""
        free = [text for text, token_id in self.added_tokens.items() if token_id not in self.stop_ids]
        exact = [name for name in PAD_NAMES if name in free]
        return exact + [text for text in free if PAD_WORD.search(text.lower()) and not MEDIA.search(text.lower())]

    def _pad_advice(self) -> str:
        free = [text for text, token_id in self.added_tokens.items() if token_id not in self.stop_ids]
        spare = [text for text in free if any(part in text.lower() for part in RESERVED_PARTS)]
        unknown = [self._files.unk_token] if self._files.unk_token is not None else []
        for choice in [*self._pad_like(), *spare, *unknown]:
            if self.token_id(choice) not in self.stop_ids:
                return f'. Choose another: --set model.pad_token="{choice}"'
        return '. Choose another token of the vocabulary: --set model.pad_token="..."'


def _build(files: TokenizerFiles) -> tokenizers.Tokenizer:
    """The library's tokenizer, after a first use: what is wrong with a file may show only then."""
    try:
        core = tokenizers.Tokenizer.from_str(files.tokenizer_json.decode("utf-8"))
        core.decode(core.encode("a é", add_special_tokens=True).ids)
    except BaseException as error:
        # The library raises bare Exception for a malformed file, and a panic of its Rust code is a BaseException.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelError(f"{files.source} cannot be read: {str(error)[:300]}") from error
        raise
    return core


def _add_missing_token(core: tokenizers.Tokenizer, token_id: int, token: dict[str, Any], folder: Path) -> None:
    """Add a token that tokenizer_config.json names and tokenizer.json lacks, as transformers does."""
    content = str(token["content"])
    if core.token_to_id(content) is not None:
        return
    if token_id != core.get_vocab_size(with_added_tokens=True):
        raise ModelError(
            f"{folder / 'tokenizer_config.json'}: added token {content!r} has id {token_id}, but tokenizer.json goes "
            f"up to {core.get_vocab_size(with_added_tokens=True) - 1}"
        )
    flags = {key: bool(token.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
    made = tokenizers.AddedToken(content, special=bool(token.get("special", False)), **flags)
    core.add_special_tokens([made]) if made.special else core.add_tokens([made])


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
