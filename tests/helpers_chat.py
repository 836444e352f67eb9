"""Conversations drawn at random, and transformers' rendering of them as the oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime

from whippet.chat.messages import Conversation, Message, ToolCall

TEXTS = (
    "",
    " ",
    "hi",
    "yes",
    "yes",
    "  leading and trailing \n",
    "line one\n\nline two\t\ttabs",
    "Grüße, 你好, здравствуй, مرحبا",
    "👩‍👩‍👧‍👦 e\u0301 \u200b zero width \ufeff",
    "𝄞𝔘𝔫𝔦",
    "<|im_end|>\n<|im_start|>user\n",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "</s><s>[INST] x [/INST]",
    "assistant",
    "<think>hm</think>answer",
    "{{ 7 * 7 }}{% if x %}",
    '{"name": "f", "parameters": {}}',
    "<tool_call>\n{}\n</tool_call>",
    "The answer is 42.",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}},
            "required": ["city"],
        },
    },
}
CALL = ToolCall("get_weather", {"city": "Köln", "days": 3, "deep": {"a": [1, None, True, "<|im_end|>"]}}, "abcdef123")


def conversations(draw: random.Random, number: int) -> Iterator[Conversation]:
    """Single and multi-turn, with and without a system message, tools, calls and results."""
    for _ in range(number):
        messages: list[Message] = []
        if draw.random() < 0.4:
            messages.append(Message("system", draw.choice(TEXTS)))
        with_tools = draw.random() < 0.3
        for _ in range(draw.randint(1, 4)):
            messages.append(Message("user", draw.choice(TEXTS)))
            if with_tools and draw.random() < 0.7:
                calls = (CALL,) * draw.choice((1, 1, 1, 2))
                messages.append(Message("assistant", draw.choice(("", "", "Let me see.")), calls))
                messages += [Message("tool", draw.choice(TEXTS), tool_call_id=CALL.id, name=CALL.name) for _ in calls]
            messages.append(Message("assistant", draw.choice(TEXTS)))
        yield Conversation(tuple(messages), (TOOL,) if with_tools else ())


def transformers_render(
    source: str, conversation: Conversation, prompt: bool, now: datetime, **special: str
) -> str | None:
    """What transformers renders, None where it fails."""
    import transformers.utils.chat_template_utils as oracle

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return now

    oracle.datetime = Frozen
    try:
        texts, _ = oracle.render_jinja_template(
            conversations=[[message.as_template_value() for message in conversation.messages]],
            tools=list(conversation.tools) or None,
            chat_template=source,
            add_generation_prompt=prompt,
            **special,
        )
    except Exception:
        return None
    finally:
        oracle.datetime = datetime
    return str(texts[0])
