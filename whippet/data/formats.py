"""Rows to examples: the second arrow of the walk.

Comes in: records in one of five forms, found by their keys or named by the user. Goes out: an ``Example`` each, or
``RecordError`` with the field and the reason. What the forms look like: ``FORMS``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from whippet.chat.messages import Completion, Conversation, Document, Example, Message
from whippet.data.turns import (
    EMPTY,
    VARIABLES,
    RecordError,
    checked_text,
    from_json,
    parse_tools,
    parse_turn,
    parse_variables,
    text_or_empty,
)
from whippet.errors import DataError
from whippet.options import DataFormat

FORMS: dict[str, str] = {
    "messages": '{"messages": [{"role", "content"}, ...]}',
    "sharegpt": '{"conversations": [{"from", "value"}, ...]}',
    "alpaca": '{"instruction", "input", "output"}',
    "prompt_completion": '{"prompt", "completion"}',
    "text": '{"text"}',
}
PREFERENCE = ({"chosen", "rejected"}, {"chosen_messages", "rejected_messages"}, {"label"}, {"labels"})
TURNS = ("messages", "conversations")


@dataclass(frozen=True)
class Detected:
    """A form, and the reason for it in a few words."""

    format: DataFormat
    why: str


def detect(values: Iterable[Any], name: str) -> Detected:
    """The form that the records of the file ``name`` share. DataError if there is none, or more than one."""
    found: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    looked = 0
    for value in values:
        looked += 1
        if isinstance(value, Mapping):
            present = {str(key): item for key, item in value.items() if item is not None}
            keys.update(present.keys())
            if any(marks <= present.keys() for marks in PREFERENCE):
                raise DataError(
                    f"{name}: these records are preferences ({_listed(sorted(present))}); the objective "
                    "'sft' learns from answers alone. Name a form with data.format to train on part of them"
                )
            found[" or ".join(_forms(present))] += 1
    found.pop("", None)
    if len(found) == 1 and " or " not in next(iter(found)):
        form = next(iter(found))
        seen = "the first record has" if looked == 1 else f"the first {looked} records have"
        return Detected(form, f"{seen} {', '.join(_telling(form, keys))}")  # type: ignore[arg-type]
    known = "; ".join(f"{form} {shape}" for form, shape in FORMS.items())
    met = _listed([key for key, _ in keys.most_common(12)]) or "no object with keys"
    if found:
        several = " and ".join(found)
        raise DataError(f"{name}: the records fit more than one form ({several}); keys met: {met}. Choose one with "
                        f"data.format. Known forms: {known}")  # fmt: skip
    raise DataError(f"{name}: the form of the records is unknown; keys met: {met}. Known forms: {known}")


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys))


def _forms(present: Mapping[str, Any]) -> list[str]:
    forms = [_turns_form(present[key]) for key in TURNS if key in present]
    if {"instruction", "output"} <= present.keys():
        forms.append("alpaca")
    if {"prompt", "completion"} <= present.keys():
        forms.append("prompt_completion")
    if isinstance(present.get("text"), str):
        forms.append("text")
    return [form for form in forms if form]


def _turns_form(turns: Any) -> str:
    try:
        turns = from_json(turns, "messages")
    except RecordError:
        return ""
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, Mapping):
        return ""
    return "messages" if "role" in first else "sharegpt" if "from" in first else ""


def _telling(form: str, keys: Mapping[str, int]) -> list[str]:
    wanted = {"messages": TURNS, "sharegpt": TURNS, "alpaca": ("instruction", "input", "output")}
    return [repr(key) for key in wanted.get(form, tuple(form.split("_"))) if key in keys]


def parse(value: Any, form: DataFormat) -> Example:
    """The example that a record in ``form`` (not ``auto``) stands for; RecordError if it is unusable.

    A record of any form that goes through the chat template may tell it more in ``chat_template_kwargs``.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"wanted an object with keys, met {type(value).__name__}")
    example = PARSERS[form](value)
    variables = parse_variables(value.get(VARIABLES))
    if not variables:
        return example
    if not isinstance(example, Conversation):
        raise RecordError("is for a chat template, and plain text goes through none", VARIABLES)
    return replace(example, template_variables=variables)


def _conversation(value: Mapping[str, Any]) -> Conversation:
    """Both forms with a list of turns; ``system`` and ``tools`` may stand beside it."""
    key = next((key for key in TURNS if value.get(key) is not None), None)
    if key is None:
        raise RecordError("is missing", TURNS[0])
    messages = _turns(value[key], key)
    system = text_or_empty(value, "system")
    if system and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    _check_answers(messages, key)
    return Conversation(messages, parse_tools(value.get("tools")))


def _turns(turns: Any, key: str) -> tuple[Message, ...]:
    turns = from_json(turns, key)
    if not isinstance(turns, list) or not turns:
        raise RecordError(f"wanted a list of turns, met {_shown(turns)}", key)
    return tuple(parse_turn(turn, f"{key}[{place}]") for place, turn in enumerate(turns))


def _check_answers(messages: tuple[Message, ...], key: str) -> None:
    """Someone speaks, the assistant answers, and its answers say something."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise RecordError("no assistant turn", key)
    if "user" not in roles:
        raise RecordError("no user turn", key)
    for place, message in enumerate(messages):
        empty = not message.content.strip() and not message.tool_calls
        if message.role == "assistant" and empty and message.weight != 0:
            raise RecordError(EMPTY, f"{key}[{place}]")


def _alpaca(value: Mapping[str, Any]) -> Conversation:
    """``history`` holds earlier pairs of question and answer; ``input`` follows the instruction on its own line."""
    for field in ("instruction", "output"):
        if value.get(field) is None:
            raise RecordError("is missing", field)
    instruction, extra = text_or_empty(value, "instruction"), text_or_empty(value, "input")
    question = f"{instruction}\n{extra}" if instruction and extra else instruction or extra
    if not question.strip():
        raise RecordError("is empty, and so is 'input'", "instruction")
    answer = text_or_empty(value, "output")
    if not answer.strip():
        raise RecordError(EMPTY, "output")
    messages = []
    if system := text_or_empty(value, "system"):
        messages.append(Message("system", system))
    history = from_json(value.get("history") or [], "history")
    if not isinstance(history, list):
        raise RecordError(f"wanted a list of pairs, met {_shown(history)}", "history")
    for place, pair in enumerate(history):
        field = f"history[{place}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError(f"wanted a pair [question, answer], met {_shown(pair)}", field)
        asked, answered = (checked_text(text, field) for text in pair)
        if not answered.strip():
            raise RecordError(EMPTY, field)
        messages += [Message("user", asked), Message("assistant", answered)]
    messages += [Message("user", question), Message("assistant", answer)]
    return Conversation(tuple(messages), parse_tools(value.get("tools")))


def _prompt_completion(value: Mapping[str, Any]) -> Conversation | Completion:
    """Two texts, continued without a template; or two lists of messages, of which the second is trained."""
    for field in ("prompt", "completion"):
        if value.get(field) is None:
            raise RecordError("is missing", field)
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        given = tuple(_untrained(message) for message in _turns(prompt, "prompt"))
        messages = given + _turns(completion, "completion")
        _check_answers(messages, "completion")
        return Conversation(messages, parse_tools(value.get("tools")))
    prompt, completion = checked_text(prompt, "prompt"), checked_text(completion, "completion")
    if not completion.strip():
        raise RecordError(EMPTY, "completion")
    return Completion(prompt, completion)


def _untrained(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return Message(message.role, message.content, message.tool_calls, message.tool_call_id, message.name, 0.0)


def _text(value: Mapping[str, Any]) -> Document:
    if value.get("text") is None:
        raise RecordError("is missing", "text")
    text = checked_text(value["text"], "text")
    if not text.strip():
        raise RecordError("is empty", "text")
    return Document(text)


PARSERS = {
    "messages": _conversation,
    "sharegpt": _conversation,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "text": _text,
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
