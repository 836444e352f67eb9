"""A model to ask: ``whippet.load(...)`` gives one, and training makes one from its own parts to sample from.

Comes in: a checkpoint, run or adapter (or a decoder, a tokenizer and a renderer). Goes out: logits, continuations of
a text, replies to messages; whole, streamed or in batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whippet.chat.messages import Message
from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data.turns import checked_text
from whippet.errors import UsageError
from whippet.infer.defaults import answering_base, chat_sampling
from whippet.infer.dense import dense, make_dense
from whippet.infer.engine import Engine, engine_for, generate
from whippet.infer.evaluating import evaluating
from whippet.infer.locate import locate
from whippet.infer.prompts import Messages, conversation
from whippet.infer.room import room_for
from whippet.infer.sampling import Sampling
from whippet.infer.stopping import ReplyText
from whippet.infer.stream import Stream
from whippet.lora import disabled
from whippet.model.decoder import Decoder
from whippet.options import Base, Compute
from whippet.weights.adapter import load_adapter
from whippet.weights.load import choose_device, held_in, load_decoder, resolve_model

KEPT = 16384
"""Tokens of which keys and values are kept from one reply to the next, if there is the memory."""
Prompt = str | Messages
"""A text, which is continued as it stands, or messages, which are answered through the chat template."""


def load(
    path: str | Path,
    base: Base = "auto",
    *,
    device: str = "auto",
    compute: Compute = "auto",
    adapter: str | Path | None = None,
    template: str | None = None,
    template_variables: Mapping[str, Any] | None = None,
    revision: str = "main",
) -> Model:
    """Load a checkpoint folder, a hub id, a run's folder or an adapter's folder.

    base: how weights are held: ``fp32``, ``bf16``, ``fp8``, ``nf4``; ``auto`` is what a run or a quantised checkpoint
    was made with, else bf16 on a GPU, and on the CPU fp32 if that fits in half of the free memory, or bf16.
    device: ``cuda``, ``cuda:1``, ``cpu``; ``auto`` takes a GPU if there is one.
    compute: the dtype of activations; ``auto`` is bf16 on a GPU (fp16 on one without it), on the CPU that of the base.
    adapter: a folder in PEFT's layout to lay over the base. template: a named chat template or a ``.jinja`` file.
    template_variables: what it is told besides the chat (``{"enable_thinking": False}``), before what a run tells it.

    A quantised model on the CPU is dequantised once to the same values if that fits (``dense.py``). Raises UsageError
    or ModelError for what cannot be found, read or trusted.
    """
    found = locate(path, adapter=adapter, revision=revision)
    folder = resolve_model(found.base, found.revision)
    tokenizer = Tokenizer.load(folder)
    told = {**(found.template_variables if template is None else {}), **(template_variables or {})}
    renderer = make_renderer(tokenizer, template if template is not None else found.template, told)
    where = choose_device(device)
    held: Base = found.stored_as if base == "auto" else base
    held = answering_base(folder, where) if held == "auto" else held
    decoder = load_decoder(folder, base=held, compute=compute, device=where)
    if found.adapter is not None:
        load_adapter(decoder, found.adapter)
    about = f"{held} on {where}" + (f", an adapter over {found.base}" if found.adapter is not None else "")
    if held_in(folder) == "fp4":
        about += ", dequantised from fp4"
    if make_dense(decoder):
        about += ", dequantised once"
    return Model(decoder, tokenizer, renderer, about=about, chat_sampling=chat_sampling(folder))


class Model:
    """A decoder with its tokenizer and its chat template.

    ``about`` says in a few words how it is held. ``chat_sampling`` is how ``chat`` draws; everything else takes the
    likeliest token unless told otherwise. The keyword arguments called ``sampling`` below are the fields of
    ``Sampling``: max_new_tokens, temperature, top_p, top_k, min_p, seed, stop, repetition_penalty, presence_penalty,
    frequency_penalty, logit_bias.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        renderer: Renderer,
        *,
        about: str = "",
        chat_sampling: Sampling | None = None,
    ) -> None:
        self.decoder, self.tokenizer, self.renderer, self.about = decoder, tokenizer, renderer, about
        self.chat_sampling = chat_sampling if chat_sampling is not None else Sampling()
        self._engines: dict[bool, Engine] = {}

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter lies over the base."""
        return any(projection.adapter_items() for _, projection in self.decoder.projections())

    @property
    def has_template(self) -> bool:
        """Whether messages can be answered; a base model without a template continues texts only."""
        return self.renderer.template is not None

    def base(self) -> AbstractContextManager[None]:
        """Inside ``with model.base():`` the model answers as it did before it was tuned."""
        return disabled(self.decoder)

    @torch.no_grad()
    def logits(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Scores of the next token after each of ``ids`` [T]: fp32 [T, vocabulary], on the model's device."""
        device = self.decoder.device
        ids_T = torch.as_tensor(ids, dtype=torch.int64, device=device)
        if ids_T.ndim != 1 or len(ids_T) == 0:
            raise UsageError(f"ids have the shape {list(ids_T.shape)}, wanted [T] with at least one token")
        size, context = self.decoder.config.vocab_size, self.decoder.config.context
        if int(ids_T.min()) < 0 or int(ids_T.max()) >= size:
            raise UsageError(f"ids reach from {int(ids_T.min())} to {int(ids_T.max())}, wanted 0 to {size - 1}")
        if len(ids_T) > context:
            raise UsageError(f"{len(ids_T)} tokens do not fit in the model's context of {context}")
        borders = torch.tensor([0, len(ids_T)], dtype=torch.int32, device=device)
        with evaluating(self.decoder):
            hidden_TH = self.decoder(ids_T, torch.arange(len(ids_T), device=device), borders, len(ids_T))
            return self.decoder.logits(hidden_TH)

    def generate(self, prompt: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None, **sampling: Any) -> str:
        """The continuation of a text, or the text of the reply to messages."""
        return self.stream(prompt, tools=tools, **sampling).drain().text

    def stream(self, prompt: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None, **sampling: Any) -> Stream:
        """The same, piece by piece: iterate over it; afterwards it tells the counts, the time and why it ended."""
        return self._stream(prompt, tools, _sampling(Sampling(), sampling))

    def chat(
        self, messages: str | Messages, tools: Sequence[Mapping[str, Any]] | None = None, **sampling: Any
    ) -> Message:
        """The assistant's reply, its tool calls parsed. A text is one message from the user."""
        asked = conversation(messages, tools)
        return self.message(self.chat_stream(asked, **sampling).drain(), asked.tools)

    def chat_stream(
        self, messages: str | Messages, tools: Sequence[Mapping[str, Any]] | None = None, **sampling: Any
    ) -> Stream:
        """``chat`` piece by piece; ``message`` makes the reply of a finished stream."""
        return self._stream(conversation(messages, tools), None, _sampling(self.chat_sampling, sampling))

    def message(self, stream: Stream, tools: Sequence[Mapping[str, Any]] = ()) -> Message:
        """The reply of a finished stream as a message, its tool calls parsed. Where ``tools`` were offered, only they
        are called; what calls another stays text."""
        return self.renderer.parse(stream.text, tools)

    def generate_batch(self, prompts: Sequence[Prompt], **sampling: Any) -> list[str]:
        """``generate`` for many prompts at once, each answered as if it were alone. With a ``seed`` each row draws
        from a generator of its own with that seed, so equal prompts get equal replies."""
        chosen = _sampling(Sampling(), sampling)
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        stops = [self._stop(prompt, chosen) for prompt in prompts]
        texts = [ReplyText(self.tokenizer, stop, context) for stop, context in zip(stops, ids, strict=True)]

        def on_token(row: int, token_id: int) -> bool:
            texts[row].push(token_id)
            return texts[row].stopped

        with dense(self.decoder):
            generate(self.decoder, ids, chosen, self.renderer.stop_ids, on_token)
        for text in texts:
            text.close()
        return [text.text for text in texts]

    def prompt_ids(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The token ids that the model is given for ``prompt``."""
        if isinstance(prompt, str):
            if tools:
                raise UsageError("tools need messages: a plain text is continued without the chat template")
            return self._text_ids(prompt)
        asked = conversation(prompt, tools)
        return self.renderer.prompt_ids(asked.messages, asked.tools, asked.template_variables)

    def _text_ids(self, text: str) -> list[int]:
        """BOS as the tokenizer has it, once; never an end token that it may append."""
        ids = self.tokenizer.encode(checked_text(text, "the prompt"), special_tokens=True)
        if self.tokenizer.adds_eos:
            ids = ids[:-1]
        if self.tokenizer.adds_bos and ids[1:2] == [self.tokenizer.bos_id]:
            ids = ids[1:]
        return ids

    def _stream(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] | None, sampling: Sampling) -> Stream:
        ids = self.prompt_ids(prompt, tools)
        sampling = replace(sampling, stop=self._stop(prompt, sampling))
        engine = self._engine(len(ids) + room_for(ids, sampling, self.decoder.config))
        return Stream(self.decoder, self.tokenizer, ids, sampling, self.renderer.stop_ids, engine)

    def _engine(self, need: int) -> Engine | None:
        """What answers one prompt after another, and knows again what they begin with; None while the model learns,
        when nothing may be kept. ``need``: tokens of prompt and reply."""
        if any(parameter.requires_grad for parameter in self.decoder.parameters()):
            return None
        # What is kept was computed with the adapter or without it.
        adapted = all(projection.adapters_enabled for _, projection in self.decoder.projections())
        engine = self._engines.get(adapted)
        if engine is None or engine.cache_size < need:
            engine = engine_for(self.decoder, [need], reuse=True, least=KEPT)
            self._engines[adapted] = engine
        return engine

    def _stop(self, prompt: Prompt, sampling: Sampling) -> tuple[str, ...]:
        """The texts that end a reply: those asked for, and in a chat those with which its template ends a turn."""
        return sampling.stop if isinstance(prompt, str) else sampling.stop + self.renderer.stop_strings


def _sampling(default: Sampling, given: Mapping[str, Any]) -> Sampling:
    """``default`` with the fields that were given; None leaves a field as it is."""
    known = [field.name for field in fields(Sampling)]
    for key in given:
        if key not in known:
            raise UsageError(f"unknown argument {key!r}; known: {', '.join(known)}")
    chosen = {key: value for key, value in given.items() if value is not None}
    if "stop" in chosen:
        stop = chosen["stop"]
        chosen["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return replace(default, **chosen)
