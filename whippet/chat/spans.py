"""Where in a rendered conversation each message stands, to the character.

Comes in: a template, a conversation and its rendered text. Goes out: a span ``[start, end)`` for each wanted message.
A template is a program, so its output cannot be searched for a message's text: the text may occur elsewhere, be
trimmed, or imitate the template's own markers. Instead the messages are replaced by characters that occur nowhere,
the conversation is rendered again, and what stays equal around a replacement is the template's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from whippet.chat.messages import Conversation, Message, ToolCall
from whippet.chat.replies import INTERPRETER
from whippet.chat.template import ChatTemplate
from whippet.errors import DataError

PLAIN_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
}
"""For templates that take no chat without tools."""
FIRST_PRIVATE, LAST_PRIVATE = 0xE000, 0xF8FF


@dataclass(frozen=True)
class Rendering:
    """One rendering, and what is needed to render its like."""

    template: ChatTemplate
    conversation: Conversation
    add_generation_prompt: bool
    now: datetime
    text: str

    def again(self, messages: Mapping[int, Message]) -> str:
        """The text with some messages replaced, by index."""
        changed = tuple(messages.get(turn, message) for turn, message in enumerate(self.conversation.messages))
        conversation = replace(self.conversation, messages=changed)
        return self.template.render(conversation, add_generation_prompt=self.add_generation_prompt, now=self.now)

    def cut(self, turns: int, messages: Mapping[int, Message], add_generation_prompt: bool) -> str:
        """The text of the first ``turns`` messages, some of them replaced."""
        kept = tuple(messages.get(turn, one) for turn, one in enumerate(self.conversation.messages[:turns]))
        conversation = replace(self.conversation, messages=kept)
        return self.template.render(conversation, add_generation_prompt=add_generation_prompt, now=self.now)

    def start(self, turns: int, add_generation_prompt: bool) -> str | None:
        """The text of the first ``turns`` messages, if the template renders them and the whole begins with it."""
        try:
            text = self.cut(turns, {}, add_generation_prompt)
        except DataError:
            return None
        return text if self.text.startswith(text) else None


def find_spans(rendering: Rendering, wanted: Collection[int], ends: Collection[str]) -> dict[int, tuple[int, int]]:
    """The span of each message in ``wanted`` (indices), and of others where it is found on the way. ``ends`` are the
    texts that may end a turn.

    DataError names an assistant's message whose place cannot be told; that of another message may be missing.
    """
    if not wanted:
        return {}
    marker = _unused_character(rendering)
    messages = rendering.conversation.messages
    plain = [turn for turn, message in enumerate(messages) if not message.tool_calls]
    answers = [turn for turn in plain if messages[turn].role == "assistant"]
    found = _walk(rendering, plain, marker) or _walk(rendering, answers, marker)
    for turn in wanted:
        if turn in found:
            continue
        span = (
            _alone(rendering, turn, marker) or _between(rendering, turn, ends) or _after(rendering, turn, ends, marker)
        )
        if span is not None:
            found[turn] = span
        elif messages[turn].role == "assistant":
            name = rendering.template.name
            raise DataError(f"chat template {name}: cannot tell where message {turn} (assistant) stands in its text")
    return found


def check_complete(rendering: Rendering, found: Mapping[int, tuple[int, int]]) -> None:
    """Raise DataError if the template leaves out a message, a tool call or the tools: templates skip what they do not
    know without a word. ``found`` are the spans that are known, the assistant's turns among them."""
    text, name = rendering.text, rendering.template.name
    messages = rendering.conversation.messages
    for turn, message in enumerate(messages):
        for call in message.tool_calls:
            if not _shows(text[slice(*found[turn])], call):
                raise DataError(f"chat template {name} leaves out the tool call of message {turn} ({call.name})")
    unproven = [
        turn
        for turn, message in enumerate(messages)
        if message.content.strip() and (turn not in found or message.tool_calls)
    ]
    marker = _unused_character(rendering)
    for turn in _unseen(rendering, unproven, marker):
        if marker not in rendering.again({turn: replace(messages[turn], content=marker)}):
            what = "the text beside the tool calls of message" if messages[turn].tool_calls else "message"
            raise DataError(f"chat template {name} leaves out {what} {turn} ({messages[turn].role})")
    tools = [str(tool.get("function", tool).get("name", "")) for tool in rendering.conversation.tools]
    if tools and not any(tool in text for tool in tools):
        raise DataError(f"chat template {name} leaves out the tools ({', '.join(tools)[:80]})")


def _shows(said: str, call: ToolCall) -> bool:
    """Whether what was said holds a call: its name, or a program as it stands, which needs none."""
    code = call.arguments.get("code") if call.name == INTERPRETER else None
    return call.name in said or (isinstance(code, str) and bool(code.strip()) and code in said)


def _unseen(rendering: Rendering, turns: Collection[int], marker: str) -> Collection[int]:
    """Those of ``turns`` that one rendering with a mark in place of each does not show; they want a closer look."""
    if not turns:
        return ()
    messages = rendering.conversation.messages
    marks = {turn: f"{marker}{turn}{marker}" for turn in turns}
    try:
        marked = rendering.again({turn: replace(messages[turn], content=mark) for turn, mark in marks.items()})
    except DataError:
        return turns
    return [turn for turn, mark in marks.items() if mark not in marked]


def _unused_character(rendering: Rendering) -> str:
    """A private-use character that occurs neither in the text nor in what the text was made from."""
    used = set(rendering.text).union(*(message.content for message in rendering.conversation.messages))
    for code in range(FIRST_PRIVATE, LAST_PRIVATE + 1):
        if chr(code) not in used:
            return chr(code)
    raise DataError("a conversation uses every private-use character of the basic plane")


def _walk(rendering: Rendering, turns: Collection[int], marker: str) -> dict[int, tuple[int, int]]:
    """Replace all plain messages at once and lay both texts side by side; empty if they do not fit together.

    A template prints a content as it is or trimmed, which decides its length without searching for what follows.
    """
    messages = rendering.conversation.messages
    try:
        other = rendering.again({turn: _stand_in(messages[turn], f"{marker}{turn}{marker}") for turn in turns})
    except DataError:
        return {}
    pieces = re.split(f"{marker}(\\d+){marker}", other)
    order, gaps = [int(turn) for turn in pieces[1::2]], pieces[::2]
    if sorted(order) != sorted(turns) or not rendering.text.startswith(gaps[0]):
        return {}
    found: dict[int, tuple[int, int]] = {}
    position = len(gaps[0])
    for turn, gap in zip(order, gaps[1:], strict=True):
        content = messages[turn].content
        for shown in (content, content.strip(), content.lstrip(), content.rstrip()):
            if rendering.text.startswith(shown + gap, position):
                found[turn] = (position, position + len(shown))
                position += len(shown) + len(gap)
                break
        else:
            return {}
    return found if position == len(rendering.text) else {}


def _alone(rendering: Rendering, turn: int, marker: str) -> tuple[int, int] | None:
    """Replace one message: what differs between the two texts is that message's. A message with tool calls is
    replaced by a plain one, whose header is the same."""
    message = rendering.conversation.messages[turn]
    try:
        other = rendering.again({turn: _stand_in(message, marker)})
    except DataError:
        return None
    if other.count(marker) != 1:
        return None
    place = other.index(marker)
    tail = other[place + 1 :]
    start = len(_common_start(rendering.text, other[:place]))
    if message.tool_calls:
        prompt = rendering.start(turn, add_generation_prompt=True)
        start = len(prompt) if prompt is not None else start
    if other[start:place].strip() or not rendering.text.endswith(tail):
        return None
    end = len(rendering.text) - len(tail)
    return (start, end) if start <= end else None


def _between(rendering: Rendering, turn: int, ends: Collection[str]) -> tuple[int, int] | None:
    """From the prompt for a turn to the last end marker of the text that ends with it, where both are beginnings of
    the whole."""
    before = rendering.start(turn, True)
    if before is None:
        return None
    try:
        after = rendering.cut(turn + 1, {}, False)
    except DataError:
        return None
    end = max((after.rfind(text) for text in ends), default=-1)
    return (len(before), end) if end >= len(before) and rendering.text.startswith(after[:end]) else None


def _after(rendering: Rendering, turn: int, ends: Collection[str], marker: str) -> tuple[int, int] | None:
    """From what follows the message before, in a prompt for this turn, to the last end marker of the text that ends
    with it. Some templates write an earlier part in another way once later turns are there (Mistral's put the tools
    before the last question), so that neither of these texts need be a beginning of the whole."""
    before = turn - 1
    if before < 0:
        return None
    marked = {before: _stand_in(rendering.conversation.messages[before], marker)}
    try:
        whole = rendering.again(marked)
        prompt, ended = rendering.cut(turn, marked, True), rendering.cut(turn + 1, marked, False)
    except DataError:
        return None
    if {text.count(marker) for text in (whole, prompt, ended)} != {1}:
        return None
    rest, head, tail = (text.partition(marker)[2] for text in (whole, prompt, ended))
    end = max((tail.rfind(text) for text in ends), default=-1)
    if (
        not rendering.text.endswith(rest)
        or end < len(head)
        or not (tail.startswith(head) and rest.startswith(tail[:end]))
    ):
        return None
    start = len(rendering.text) - len(rest)
    return start + len(head), start + end


def _stand_in(message: Message, content: str) -> Message:
    return replace(message, content=content, tool_calls=())


def end_marker(template: ChatTemplate, known: Collection[str]) -> str | None:
    """What ``template`` puts after an assistant's turn: one of the token texts in ``known`` if it begins with one,
    else the text that follows whether or not another turn comes; None if nothing does."""
    tails = _tails(template, ()) or _tails(template, (PLAIN_TOOL,))
    if not tails:
        return None
    tokens = [token for token in known if token and tails[0].startswith(token)]
    return max(tokens, key=len, default=None) or _common_start(tails[0], tails[1], known).strip() or None


def _tails(template: ChatTemplate, tools: tuple[dict[str, Any], ...]) -> list[str]:
    """What follows an answer at the end of a chat, and before another question; empty if the template refuses."""
    question, answer = Message("user", "\ue000"), Message("assistant", "\ue001")
    chats = ((question, answer), (question, answer, question))
    try:
        texts = [template.render(Conversation(messages, tools)) for messages in chats]
    except DataError:
        return []
    return [text.partition("\ue001")[2].lstrip() for text in texts]


def _common_start(left: str, right: str, whole: Collection[str] = ()) -> str:
    """What both texts begin with; it does not end within one of the texts in ``whole`` that either of them holds."""
    length = next((place for place, (one, two) in enumerate(zip(left, right, strict=False)) if one != two), None)
    end = min(len(left), len(right)) if length is None else length
    for text in (left, right):
        begins = [text.find(token, max(0, end - len(token) + 1), end + len(token) - 1) for token in whole if token]
        end = min([end, *(begin for begin in begins if 0 <= begin < end)])
    return left[:end]
