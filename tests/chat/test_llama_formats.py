"""Each example of Llama 3.3's prompt_format.md, written from messages to the byte, and its reply read back.

The examples are read from ../shared/data, for their texts are Meta's: a prompt is cut at its headers into messages,
which are rendered again.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers_chat import TOOL, byte_tokenizer
from helpers_data import shared

from whippet.chat.messages import Completion, Conversation, Message, ToolCall
from whippet.chat.render import Author, Renderer, make_renderer
from whippet.chat.replies import parse_reply, read_reply
from whippet.chat.tokenizer import Tokenizer

HEADER = re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n")
FENCED = re.compile(r"##### (Input Prompt|Model Response) Format\n```\n(.*?)\n```\n", re.DOTALL)
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<|eom_id|>", "<|python_tag|>")  # fmt: skip
PRIME = re.compile(r"def is_prime\(n\):.*# Output: True", re.DOTALL)
REPLIES: list[Message | None] = [
    None,  # of the base model
    None,  # plain text
    Message("assistant", "", (
        ToolCall("get_weather", {"city": "San Francisco", "metric": "celsius"}),
        ToolCall("get_weather", {"city": "Seattle", "metric": "celsius"}),
    )),
    Message("assistant", "", (ToolCall("get_user_info", {"user_id": 7890, "special": "black"}),)),
    Message("assistant", "", (ToolCall("brave_search", {"query": "latest price of 1oz gold"}),)),
    Message("assistant", "", (ToolCall("code_interpreter", {"code": "..."}),)),
    None,
    Message("assistant", "", (ToolCall("trending_songs", {"n": "10", "genre": "all"}),)),
    Message("assistant", "", (ToolCall("trending_songs", {"n": 10}),)),
]  # fmt: skip
"""What each example is answered with; None for a text without calls."""


def examples() -> list[tuple[str, str]]:
    """Prompt and reply of each, as they stand in the document."""
    text = shared("chat_templates", "llama-models", "llama3_3_prompt_format.md").read_text(encoding="utf-8")
    parts = FENCED.findall(text)
    return [(one[1], two[1]) for one, two in zip(parts[::2], parts[1::2], strict=True)]


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    byte_tokenizer(tmp_path, adds_bos=True, extra=SPECIAL[1:])
    raw = (tmp_path / "tokenizer.json").read_text().replace('"<s>"', f'"{SPECIAL[0]}"')
    (tmp_path / "tokenizer.json").write_text(raw)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"bos_token": "{SPECIAL[0]}", "eos_token": "<|eot_id|>"}}')
    tokenizer = Tokenizer.load(tmp_path)
    return make_renderer(tokenizer, "llama-3.3")


def messages_of(prompt: str) -> list[Message]:
    """A prompt as the messages before the answer."""
    _, *parts = HEADER.split(prompt)
    made: list[Message] = []
    for role, text in zip(parts[::2], parts[1::2], strict=True):
        said = re.sub(r"<\|eo[tm]_id\|>$", "", text)
        if role == "assistant" and said:
            made.append(parse_reply(said))
        elif role != "assistant":
            made.append(Message("tool" if role == "ipython" else role, said))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("place", range(1, 9))
def test_an_example_of_a_chat(place: int, renderer: Renderer) -> None:
    prompt, reply = examples()[place]
    assert prompt.startswith("<|begin_of_text|><|start_header_id|>") and prompt.endswith(
        "assistant<|end_header_id|>\n\n"
    )
    chat = messages_of(prompt)
    decode = renderer.tokenizer.decode
    assert decode(renderer.prompt_ids(chat)) == prompt
    answer = renderer.parse(reply)
    wanted = REPLIES[place]
    if wanted is None:
        assert answer == Message("assistant", reply.removesuffix("<|eot_id|>"))
    elif place == 5:
        assert (
            PRIME.fullmatch(answer.tool_calls[0].arguments["code"]) and answer.tool_calls[0].name == "code_interpreter"
        )
    else:
        assert answer == wanted
    tokens = renderer.render(Conversation((*chat, answer)))
    assert tokens.text == prompt + reply
    assert decode(tokens.ids[tokens.turns == len(chat)].tolist()) == reply
    ends = {renderer.tokenizer.token_text(one) for one in renderer.stop_ids}
    assert ends == {"<|eot_id|>", "<|eom_id|>"}


def test_the_whole_interaction_is_trained_turn_by_turn(renderer: Renderer) -> None:
    """The call and the answer are the assistant's; the result of the tool between them is not."""
    prompt, reply = examples()[6]
    chat = messages_of(prompt)
    assert [message.role for message in chat] == ["system", "user", "assistant", "tool"]
    assert chat[2].tool_calls == (ToolCall("wolfram_alpha", {"query": "100th decimal of pi"}),)
    tokens = renderer.render(Conversation((*chat, renderer.parse(reply))), all_authors=True)
    decode = renderer.tokenizer.decode
    ours = [decode(tokens.ids[tokens.turns == turn].tolist()) for turn in (2, 4)]
    assert ours == ['<|python_tag|>wolfram_alpha.call(query="100th decimal of pi")<|eom_id|>', reply]
    assert (tokens.authors[tokens.turns == 3] == Author.TOOL).all() and "queryresult" in chat[3].content


def test_the_example_of_the_base_model(renderer: Renderer) -> None:
    prompt, reply = examples()[0]
    text = prompt.removeprefix("<|begin_of_text|>")
    tokens = renderer.render(Completion(text, reply))
    decode = renderer.tokenizer.decode
    assert decode(tokens.ids.tolist()) == prompt + reply + "<|eot_id|>"
    assert decode(renderer.tokenizer.encode(text, special_tokens=True)) == prompt


def test_plain_chats_are_llama_3s_too(renderer: Renderer) -> None:
    prompt, _ = examples()[1]
    plain = make_renderer(renderer.tokenizer, "llama-3")
    assert renderer.tokenizer.decode(plain.prompt_ids(messages_of(prompt))) == prompt


@pytest.mark.parametrize("system", ["", "Environment: ipython", "Use <function=name>{...}</function>"])
def test_calls_come_back_as_they_were(system: str, renderer: Renderer) -> None:
    """Rendered and parsed, in each of the three ways that a system message can ask for."""
    for call in (
        ToolCall("get_weather", {"city": 'Köln "am" Rhein\'s\n', "days": 3, "deep": {"a": [1, None, True]}}),
        ToolCall("get_weather", {}),
        ToolCall("brave_search", {"query": 'a "b" \\ π', "n": 2}),
    ):
        chat = [Message("system", system), Message("user", "?")]
        tokens = renderer.render(Conversation((*chat, Message("assistant", "", (call,))), (TOOL,)))
        said = renderer.tokenizer.decode(tokens.ids[tokens.turns == 2].tolist())
        assert renderer.parse(said) == Message("assistant", "", (call,))
        prompt = renderer.prompt_ids(chat, [TOOL])
        assert tokens.ids[: len(prompt)].tolist() == prompt and '"name": "get_weather"' in tokens.text


GOLD = Message("assistant", "", (ToolCall("brave_search", {"query": "latest price of 1oz gold"}),))
OTHERS: dict[str, list[Message | str | None]] = {
    "llama3_1": [
        None, None, GOLD, "code_interpreter", None, REPLIES[7], REPLIES[8],
    ],
    "llama3_2_text": [None, REPLIES[2], REPLIES[3], "code_interpreter", None, None],
    "llama3_2_vision": [None, None, GOLD, None, None],
}  # fmt: skip
"""What the examples of the other documents are answered with: a message, a call of a tool that runs a program, or None
for a text without calls."""


@pytest.mark.parametrize("name", OTHERS)
def test_replies_of_the_other_documents(name: str) -> None:
    text = shared("chat_templates", "llama-models", f"{name}_prompt_format.md").read_text(encoding="utf-8")
    replies = [said for kind, said in FENCED.findall(text) if kind == "Model Response"]
    for said, wanted in zip(replies, OTHERS[name], strict=True):
        said = re.sub(r"<\|eo[tm]_id\|>$", "", said)
        parsed = read_reply(said)
        assert parsed.trouble is None
        if isinstance(wanted, str):
            assert [call.name for call in parsed.message.tool_calls] == [wanted]
            assert parsed.message.tool_calls[0].arguments["code"] == said.removeprefix("<|python_tag|>")
        else:
            assert parsed.message == (Message("assistant", said) if wanted is None else wanted)


def test_a_list_of_calls_after_the_python_tag() -> None:
    """Llama 3.2's document has one in a conversation."""
    text = shared("chat_templates", "llama-models", "llama3_2_text_prompt_format.md").read_text(encoding="utf-8")
    said = re.findall(r"<\|python_tag\|>\[.*\]", text)
    assert [parse_reply(one) for one in said] == [
        Message("assistant", "", (ToolCall("get_weather", {"city": "San Francisco", "metric": "celsius"}),))
    ]
