"""Examples to tokens whose authors are known, and replies back to messages.

Comes in: a ``Conversation``, ``Completion`` or ``Document``. Goes out: ``Tokens``, the ids with the author of each.
The whole text is encoded once, so the ids are those of ``apply_chat_template(tokenize=True)``; authorship comes from
character spans (``spans.py``). A turn of the assistant includes what ends it, because a model must learn to stop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whippet.chat.checkpoint_templates import DEFAULT, WITH_TOOLS
from whippet.chat.messages import Completion, Conversation, Example, Message
from whippet.chat.replies import Parsed, read_reply, tool_names
from whippet.chat.spans import Rendering, check_complete, end_marker, find_spans
from whippet.chat.template import MAX_SOURCE, ChatTemplate, named_template, template_names
from whippet.chat.template_variables import check_variables, unknown
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import DataError, ModelError, UsageError

BOS_LINE = "{{- bos_token }}\n"
CALL_END = "<|eom_id|>"
"""What Llama 3 ends a message with that calls a tool, where other turns end with ``<|eot_id|>``."""
OWN = ((DEFAULT, "of the checkpoint"), (WITH_TOOLS, "'tool_use' of the checkpoint"))
PLAINEST = Conversation((Message("user", "a"), Message("assistant", "b")))
"""A chat whose rendering shows what the template does by itself."""


class Author(IntEnum):
    """Who wrote a token."""

    TEMPLATE = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4


AUTHORS = {
    "system": Author.SYSTEM,
    "developer": Author.SYSTEM,
    "user": Author.USER,
    "assistant": Author.ASSISTANT,
    "tool": Author.TOOL,
}


@dataclass(frozen=True)
class Tokens:
    """An example as tokens. ids int32 [T]; authors int8 [T] (``Author``); turns int32 [T], the index of the message
    that a token belongs to, -1 for the template's own. text: what was encoded."""

    ids: npt.NDArray[np.int32]
    authors: npt.NDArray[np.int8]
    turns: npt.NDArray[np.int32]
    text: str


class Renderer:
    """Renders for one tokenizer and one template (None: documents and completions only). Conversations with tools go
    through ``with_tools`` if there is such a template. ``variables`` is what the templates are told besides every
    conversation; one may tell more, or otherwise.

    stop_ids: tokens that end a reply. stop_strings: texts that do, where the template's end marker is no single token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        with_tools: ChatTemplate | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.with_tools = with_tools
        self.variables = dict(variables or {})
        end = end_marker(template, tokenizer.added_tokens) if template is not None else None
        end_id = tokenizer.token_id(end) if end is not None else None
        found = {end_id, tokenizer.token_id(CALL_END) if template is not None and CALL_END in template.source else None}
        self.stop_ids: frozenset[int] = tokenizer.stop_ids | {token_id for token_id in found if token_id is not None}
        self.stop_strings: tuple[str, ...] = (end,) if end is not None and end_id is None else ()
        texts = {tokenizer.token_text(token_id) for token_id in self.stop_ids} | {end}
        self._ends = tuple(sorted((text for text in texts if text), key=len, reverse=True))
        # A header such as <|assistant|> may be defined to swallow the whitespace after it, the content's included.
        self._swallowing = np.fromiter(tokenizer.added_tokens.values(), dtype=np.int32)
        # Some templates end a turn with two markers: one for the text, one for the turn.
        self._end_pattern = re.compile(r"\s*(?:" + ("|".join(map(re.escape, self._ends)) or "(?!)") + ")+")

    def render(self, example: Example, *, all_authors: bool = False, add_generation_prompt: bool = False) -> Tokens:
        """Tokens of ``example``. ``all_authors`` also tells whose the tokens of other roles are, else they count as
        the template's. DataError if the template cannot render it, doubles BOS or never ends a turn."""
        if isinstance(example, Conversation):
            return self._conversation(example, all_authors, add_generation_prompt)
        if isinstance(example, Completion):
            return self._continued(example.prompt, example.completion)
        return self._continued("", example.text)

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The tokens after which the assistant's next turn comes. ``variables`` are the conversation's own."""
        conversation = Conversation(tuple(messages), tuple(tools), dict(variables or {}))
        template = self._chat_template(conversation)
        ids = self.tokenizer.encode(template.render(conversation, add_generation_prompt=True))
        self._check_bos(ids)
        return ids

    def parse(self, reply: str | Sequence[int], tools: Sequence[Mapping[str, Any]] = ()) -> Message:
        """A model's reply as a message: cut at what ends it, tool calls taken out; malformed calls stay text."""
        return self.read(reply, tools).message

    def read(self, reply: str | Sequence[int], tools: Sequence[Mapping[str, Any]] = ()) -> Parsed:
        """The same, with the reason why calls in it were left as text. Where ``tools`` are given (in OpenAI's form),
        only they are called."""
        text = reply if isinstance(reply, str) else self.tokenizer.decode(list(reply))
        for end in self._ends:
            text = text.partition(end)[0]
        return read_reply(text, tool_names(tools) if tools else None)

    def _conversation(self, conversation: Conversation, all_authors: bool, add_generation_prompt: bool) -> Tokens:
        template = self._chat_template(conversation)
        now = datetime.now()
        rendered = template.render_marked(conversation, add_generation_prompt=add_generation_prompt, now=now)
        rendering = Rendering(template, conversation, add_generation_prompt, now, rendered.text)
        roles = [message.role for message in conversation.messages]
        answers = [turn for turn, role in enumerate(roles) if role == "assistant"]
        spans: dict[int, tuple[int, int]] = {}
        if len(rendered.marks) == len(answers):
            spans = dict(zip(answers, rendered.marks, strict=True))
        ended = [turn for turn, span in spans.items() if rendered.text[slice(*span)].rstrip().endswith(self._ends)]
        wanted = [turn for turn in (range(len(roles)) if all_authors else answers) if turn not in spans]
        spans = find_spans(rendering, wanted, self._ends) | spans
        check_complete(rendering, spans)
        for turn in answers:
            if turn not in ended:
                spans[turn] = self._with_end(rendered.text, spans[turn], turn)
        ids, offsets = self.tokenizer.encode_spans(rendered.text)
        self._check_bos(ids)
        tokens = _blank(ids, rendered.text)
        starts, ends = _columns(offsets)
        swallowing = np.isin(tokens.ids, self._swallowing)
        for turn in range(len(roles)) if all_authors else answers:
            if turn in spans:
                start, end = spans[turn]
                inside = (starts < end) & (ends > start) & ~(swallowing & (starts < start))
                tokens.authors[inside] = AUTHORS[roles[turn]]
                tokens.turns[inside] = turn
        return tokens

    def _with_end(self, text: str, span: tuple[int, int], turn: int) -> tuple[int, int]:
        """The span with the marker that ends the turn, and any whitespace before that."""
        start, end = span
        match = self._end_pattern.match(text, end)
        if match is None:
            wanted = ", ".join(map(repr, self._ends)) or "nothing: the tokenizer and the template know no end token"
            raise DataError(
                f"message {turn} (assistant) is never ended: after it comes {text[end : end + 20]!r}, wanted {wanted}"
            )
        return start, match.end()

    def _continued(self, prompt: str, completion: str) -> Tokens:
        """Plain text: BOS if the tokenizer adds one, the text, EOS. The prompt is the user's, the rest ours."""
        tokenizer = self.tokenizer
        if tokenizer.eos_id is None:
            raise ModelError("the tokenizer has no end token: tokenizer_config.json names no eos_token that it holds")
        text = prompt + completion
        ids, offsets = tokenizer.encode_spans(text)
        has_bos = tokenizer.bos_id is not None and ids[:1] == [tokenizer.bos_id]
        if ids[-1:] != [tokenizer.eos_id]:
            ids.append(tokenizer.eos_id)
            offsets.append((len(text), len(text) + 1))
        if tokenizer.adds_bos and not has_bos and tokenizer.bos_id is not None:
            ids.insert(0, tokenizer.bos_id)
            offsets.insert(0, (-1, -1))
            has_bos = True
        self._check_bos(ids)
        tokens = _blank(ids, text)
        ours = _columns(offsets)[1] > len(prompt)
        tokens.authors[:] = np.where(ours, Author.ASSISTANT, Author.USER)
        tokens.turns[:] = ours if prompt else 0
        if has_bos:
            tokens.authors[0], tokens.turns[0] = Author.TEMPLATE, -1
        return tokens

    def _chat_template(self, conversation: Conversation) -> ChatTemplate:
        template = self.with_tools if conversation.tools and self.with_tools is not None else self.template
        if template is None:
            raise UsageError(
                "this checkpoint has no chat template, so it cannot hold a conversation; choose one with "
                f"--template or --set data.template=NAME ({', '.join(_known(self.tokenizer))}) or a .jinja file"
            )
        for name in conversation.template_variables:
            if told := unknown(name, [(one.name, one.source) for one in (self.template, self.with_tools) if one]):
                raise DataError(f"chat_template_kwargs: {told}")
        return template

    def _check_bos(self, ids: Sequence[int]) -> None:
        if _doubles_bos(self.tokenizer, ids):
            raise DataError(
                f"the text begins with two {self.tokenizer.bos_token!r}: the template writes one and so does the first "
                "message; take it out of the data"
            )


def make_renderer(tokenizer: Tokenizer, template: str | None, variables: Mapping[str, Any] | None = None) -> Renderer:
    """A renderer with the checkpoint's own template (``template`` None), one of its further ones or of ours by name, or
    a ``.jinja`` file. ``variables`` (``data.template_variables``): what it is told beside every conversation; one that
    it does not read is a UsageError.

    The checkpoint's ``tool_use``, if it has one, renders conversations with tools where no template is named. Ours
    write BOS only for a tokenizer that puts it before texts itself. Raises UsageError or ModelError for a template that
    cannot be found, read or used, whatever the data.
    """
    own = tokenizer.chat_templates
    named: list[tuple[str, str | None]]
    if template is None:
        named = [(where, own.get(name)) for name, where in OWN]
    elif template in own:
        named = [(f"'{template}' of the checkpoint", own[template])]
    elif template.endswith(".jinja"):
        named = [(template, _read_template(Path(template)))]
    else:
        source = named_template(template, also=tuple(own))
        named = [(f"'{template}'", source if tokenizer.adds_bos else source.removeprefix(BOS_LINE))]
    told = dict(variables or {})
    check_variables(told, [(name, source) for name, source in named if source is not None])
    first, further = (_made(tokenizer, source, name, told) for name, source in (*named, ("", None))[:2])
    return Renderer(tokenizer, first, further, told)


def _made(tokenizer: Tokenizer, source: str | None, name: str, variables: Mapping[str, Any]) -> ChatTemplate | None:
    if source is None:
        return None
    made = ChatTemplate(source, name=name, variables={**variables, **tokenizer.named_tokens})
    _check_template(made, tokenizer)
    return made


def _known(tokenizer: Tokenizer) -> list[str]:
    """The names that may be asked for."""
    return sorted({*template_names(), *tokenizer.chat_templates})


def _check_template(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Raise ModelError for what is the template's own fault: else each record of the data would be blamed for it.

    One that refuses the plainest chat passes, since it may still take what the data hold.
    """
    try:
        ids = tokenizer.encode(template.render(PLAINEST))
    except DataError:
        return
    if _doubles_bos(tokenizer, ids):
        raise ModelError(
            f"chat template {template.name} begins every chat with two {tokenizer.bos_token!r}, wanted one: take one "
            "out of a copy of it, and choose that with --template FILE.jinja or --set data.template=FILE.jinja"
        )


def _doubles_bos(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    bos = tokenizer.bos_id
    return bos is not None and list(ids[:2]) == [bos, bos]


def _read_template(path: Path) -> str:
    try:
        raw = path.read_bytes() if path.stat().st_size <= 4 * MAX_SOURCE else b"\xff"
        return raw.decode("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"chat template {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"chat template {path} cannot be read: {error}") from error


def _blank(ids: Sequence[int], text: str) -> Tokens:
    return Tokens(
        ids=np.asarray(ids, dtype=np.int32),
        authors=np.zeros(len(ids), dtype=np.int8),
        turns=np.full(len(ids), -1, dtype=np.int32),
        text=text,
    )


def _columns(offsets: Sequence[tuple[int, int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Starts and ends of tokens [T]. A token without width counts as the character at its place; characters that
    belong to no token, because offsets leave out whitespace or it was normalised away, count with the next one."""
    table = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    ends = np.maximum(table[:, 1], table[:, 0] + 1)
    starts = table[:, 0].copy()
    starts[1:] = np.minimum(starts[1:], np.maximum.accumulate(ends)[:-1])
    return starts, ends
