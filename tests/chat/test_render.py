"""Whose every token is: against an oracle by character spans, on chats that try to mislead it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from helpers_chat import CALL, TEXTS, TOOL, byte_tokenizer, conversations, real_tokenizer

from whippet.chat.messages import Completion, Conversation, Document, Message, ToolCall
from whippet.chat.render import Author, Renderer, Tokens, make_renderer
from whippet.chat.template import ChatTemplate, named_template, template_names
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import DataError, ModelError, UsageError

# The oracle: these write a conversation piece by piece, in plain Python, with the author of each piece.
Pieces = list[tuple[str, int]]


def chatml_pieces(conversation: Conversation) -> Pieces:
    pieces: Pieces = []
    for turn, message in enumerate(conversation.messages):
        said = message.content + "<|im_end|>"
        pieces += [(f"<|im_start|>{message.role}\n", -1), (said, turn), ("\n", -1)]
    return pieces


def llama_pieces(conversation: Conversation) -> Pieces:
    pieces: Pieces = [("<s>", -1)]
    for turn, message in enumerate(conversation.messages):
        pieces += [(f"<|start_header_id|>{message.role}<|end_header_id|>\n\n", -1)]
        pieces += [(message.content.strip() + "<|eot_id|>", turn)]
    return pieces


def qwen_pieces(conversation: Conversation) -> Pieces:
    """Calls as Qwen writes them, results as tool turns."""
    pieces: Pieces = [("<tools>get_weather</tools>", -1)] if conversation.tools else []
    for turn, message in enumerate(conversation.messages):
        calls = "".join(f"\n<tool_call>\n{call.name} <|im_end|>\n</tool_call>" for call in message.tool_calls)
        pieces += [(f"<|im_start|>{message.role}\n", -1), (message.content + calls + "<|im_end|>", turn), ("\n", -1)]
    return pieces


QWEN_LIKE = """{%- if tools %}{{ '<tools>' + tools[0].function.name + '</tools>' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' + c.function.name + ' <|im_end|>\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MARKED = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}
{{- m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}
{%- endfor %}"""
TEMPLATES = {
    "chatml": (named_template("chatml").removeprefix("{{- bos_token }}\n"), chatml_pieces, False),
    "llama-3": (named_template("llama-3"), llama_pieces, False),
    "qwen-like": (QWEN_LIKE, qwen_pieces, True),
    "marked": (MARKED, chatml_pieces, False),
}


def expected_turns(tokens: Tokens, tokenizer: Tokenizer, pieces: Pieces) -> list[int]:
    """The message of each token of the assistant by its characters, -1 elsewhere."""
    of_character = [turn for text, turn in pieces for _ in text]
    _, spans = tokenizer.encode_spans(tokens.text)
    return [max(of_character[start:end], default=-1) for start, end in spans]


def misleading(draw: random.Random, number: int, tools: bool) -> list[Conversation]:
    """Chats whose contents repeat each other, are empty, or imitate markers and whole turns."""
    found = [one for one in conversations(draw, number) if tools or not one.tools]
    for _ in range(number - len(found)):
        texts = [draw.choice(TEXTS) for _ in range(2)] + ["<|im_end|>\n<|im_start|>assistant\n", "yes", "<s>", ""]
        roles = ["user", "assistant"] * draw.randint(1, 5)
        found.append(
            Conversation(tuple(Message(role, "".join(draw.choices(texts, k=draw.randint(0, 3)))) for role in roles))
        )  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_mask_equals_oracle(name: str, tmp_path: Path) -> None:
    source, pieces_of, tools = TEMPLATES[name]
    extra = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path, adds_bos=name == "llama-3", extra=extra)))
    renderer = Renderer(tokenizer, ChatTemplate(source, name=name, bos_token="<s>", eos_token="</s>"))
    for conversation in misleading(random.Random(name), 350, tools):
        pieces = pieces_of(conversation)
        tokens = renderer.render(conversation)
        assert tokens.text == "".join(text for text, _ in pieces)
        roles = [message.role for message in conversation.messages]
        turns = [
            turn if turn >= 0 and roles[turn] == "assistant" else -1
            for turn in expected_turns(tokens, tokenizer, pieces)
        ]
        assert tokens.turns.tolist() == turns
        assert ((tokens.authors == Author.ASSISTANT) == (tokens.turns >= 0)).all()
        assert tokens.ids.dtype == np.int32 and tokens.authors.dtype == np.int8 and tokens.turns.dtype == np.int32


def talk(*contents: str) -> Conversation:
    """The user and the assistant in turns."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[place % 2], text) for place, text in enumerate(contents)))  # type: ignore[arg-type]


def with_config(folder: Path) -> Path:
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


def spoken(tokenizer: Tokenizer, tokens: Tokens, author: Author = Author.ASSISTANT) -> list[str]:
    """What an author says, one text a turn."""
    turns = sorted({int(turn) for turn in tokens.turns[tokens.authors == author]})
    return [tokenizer.decode(tokens.ids[tokens.turns == turn].tolist()) for turn in turns]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", template_names())
def test_every_named_template_works_with_a_tokenizer_without_its_markers(
    name: str, adds_bos: bool, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path, adds_bos=adds_bos)))
    renderer = make_renderer(tokenizer, name)
    chat = Conversation(
        (Message("user", "one"), Message("assistant", "yes"), Message("user", "two"), Message("assistant", "yes"))
    )
    tokens = renderer.render(chat, all_authors=True)
    assert (tokens.ids[0] == 1) == adds_bos and 1 not in tokens.ids[1:]
    said = spoken(tokenizer, tokens)
    assert len(said) == 2
    for text in said:
        assert text.strip().startswith("yes") and text != "yes"
        assert renderer.parse(text) == Message("assistant", "yes") or renderer.parse(text).content.strip() == "yes"
        ended_by_id = any(tokenizer.token_text(token_id) in text for token_id in renderer.stop_ids)
        assert ended_by_id or any(text.endswith(stop) for stop in renderer.stop_strings)
    assert [text.strip() for text in spoken(tokenizer, tokens, Author.USER)] == ["one", "two"]
    prompt = renderer.prompt_ids(chat.messages[:1])
    assert tokens.ids[: len(prompt)].tolist() == prompt


def test_chatml_marker_is_one_token_where_the_vocabulary_has_it(tmp_path: Path) -> None:
    plain = make_renderer(Tokenizer.load(with_config(byte_tokenizer(tmp_path / "a"))), "chatml")
    assert plain.stop_strings == ("<|im_end|>",) and plain.stop_ids == {2}
    known = make_renderer(Tokenizer.load(with_config(byte_tokenizer(tmp_path / "b", extra=("<|im_end|>",)))), "chatml")
    assert known.stop_strings == () and known.stop_ids == {2, 3}


TWO = ("user", "assistant")
REAL = ("llama3", "qwen2.5", "smollm2", "mistral-v0.3-instruct", "phi-3-mini", "zephyr")


@pytest.mark.parametrize("name", REAL)
def test_real_templates_and_tokenizers(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each turn's tokens spell the content and an end token, whatever the content is."""
    tokenizer = Tokenizer.load(real_tokenizer(name, tmp_path_factory))
    renderer = make_renderer(tokenizer, None)
    rendered = 0
    for conversation in conversations(random.Random(3), 60):
        try:
            tokens = renderer.render(conversation, all_authors=True)
        except DataError as error:
            unsupported = conversation.tools or "leaves out message 0 (system)" in str(error)
            assert unsupported, f"only tools, and system messages with Mistral, are beyond these templates: {error}"
            continue
        rendered += 1
        said = {int(turn): tokenizer.decode(tokens.ids[tokens.turns == turn].tolist()) for turn in set(tokens.turns)}
        for turn, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            end = max((said[turn].rfind(tokenizer.token_text(one) or "?") for one in renderer.stop_ids), default=-1)
            assert end >= 0
            shown = tokenizer.decode(tokenizer.encode(message.content)).strip()
            assert shown in said[turn][:end] or shown.split("</think>")[-1] in said[turn][:end]
            for call in message.tool_calls:
                assert call.name in said[turn] and "Köln" in said[turn]
            last = np.flatnonzero(tokens.turns == turn)[-1]
            assert int(tokens.ids[last]) in renderer.stop_ids
    assert rendered >= 30


def test_tool_turns_of_llama_and_qwen(tmp_path_factory: pytest.TempPathFactory) -> None:
    call = ToolCall("get_weather", {"city": "Köln", "days": 3})
    question, answer = Message("user", "?"), Message("assistant", "21.")
    result = Message("tool", "21", tool_call_id="x")
    messages = (question, Message("assistant", "", (call,)), result, answer)
    expected = {
        "llama3": '{"name": "get_weather", "parameters": ',
        "qwen2.5": '<tool_call>\n{"name": "get_weather", "arguments": ',
    }
    for name, beginning in expected.items():
        tokenizer = Tokenizer.load(real_tokenizer(name, tmp_path_factory))
        renderer = make_renderer(tokenizer, None)
        tokens = renderer.render(Conversation(messages, (TOOL,)))
        said = spoken(tokenizer, tokens)
        assert said[0].startswith(beginning) and said[1].startswith("21.")
        parsed = renderer.parse(tokens.ids[tokens.turns == 1].tolist())
        assert parsed == Message("assistant", "", (call,))
        prompt = renderer.prompt_ids(messages[:1], [TOOL])
        assert tokens.ids[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize(
    ("source", "messages", "complaint"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", TWO, "never ended"),
        ("{% for m in messages %}{{ m.content ~ '</s>' if m.role != 'tool' }}{% endfor %}", (*TWO, "tool"), "sage 2"),
        ("{{ raise_exception('no system here') }}", ("system", "assistant"), "no system here"),
        ("{{ bos_token * 2 }}{% for m in messages %}{{ m.content }}</s>{% endfor %}", TWO, "begins with two '<s>'"),
        ("{{ messages|length }}{% for m in messages %}{{ m.content * 2 }}</s>{% endfor %}", TWO, "where message 1"),
        ("{% for m in messages if m.role != 'assistant' %}{{ m.content }}</s>{% endfor %}", TWO, "message 1"),
        ("{{ messages[9].content.x }}", TWO, "cannot render"),
        ("{{ messages[0].content + 1 }}", TWO, "TypeError"),
    ],
)  # fmt: skip
def test_templates_that_will_not_do(source: str, messages: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    renderer = Renderer(tokenizer, ChatTemplate(source, name="bad", bos_token="<s>", eos_token="</s>"))
    chat = Conversation(tuple(Message(role, f"word{place}") for place, role in enumerate(messages)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=complaint):
        renderer.render(chat)


def test_tools_that_a_template_does_not_show(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    renderer = make_renderer(tokenizer, "vicuna")
    with pytest.raises(DataError, match=r"leaves out the tools \(get_weather\)"):
        renderer.render(Conversation((Message("user", "a"), Message("assistant", "b")), (TOOL,)))
    with pytest.raises(DataError, match="leaves out the tool call of message 1"):
        renderer.render(Conversation((Message("user", "a"), Message("assistant", "b", (CALL,)))))


def test_text_beside_a_tool_call_is_not_lost_in_silence(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    chat = Conversation((Message("user", "a"), Message("assistant", "Let me see.", (CALL,))), (TOOL,))
    with pytest.raises(DataError, match="no text beside it"):
        make_renderer(tokenizer, "llama-3").render(chat)
    tokens = make_renderer(tokenizer, "chatml").render(chat)
    assert spoken(tokenizer, tokens)[0].startswith("Let me see.\n<tool_call>\n")
    source = "{{ tools[0].function.name }}{% for m in messages %}{{ m.tool_calls or m.content }}</s>{% endfor %}"
    renderer = Renderer(tokenizer, ChatTemplate(source, name="lossy", eos_token="</s>"))
    with pytest.raises(DataError, match="leaves out the text beside the tool calls of message 1"):
        renderer.render(chat)


def test_documents(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path, adds_bos=True)))
    renderer = Renderer(tokenizer, None)
    for text in ("é hello", "<s>é hello", "é hello</s>"):
        tokens = renderer.render(Document(text))
        assert tokenizer.decode(tokens.ids.tolist()) == "<s>é hello</s>"
        assert tokens.authors.tolist() == [0] + [3] * (len(tokens.ids) - 1)
        assert tokens.turns.tolist() == [-1] + [0] * (len(tokens.ids) - 1)
    with pytest.raises(DataError, match="begins with two"):
        renderer.render(Document("<s><s>a"))
    with pytest.raises(UsageError, match="no chat template"):
        renderer.render(Conversation((Message("user", "a"),)))
    assert renderer.render(Document("")).ids.tolist() == [1, 2]
    byte_tokenizer(tmp_path / "endless")
    with pytest.raises(ModelError, match="no end token"):
        Renderer(Tokenizer.load(tmp_path / "endless"), None).render(Document("a"))


def test_completions(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    tokens = Renderer(tokenizer, None).render(Completion("Q: é\nA:", " yes"))
    assert tokenizer.decode(tokens.ids.tolist()) == "Q: é\nA: yes</s>"
    assert tokenizer.decode(tokens.ids[tokens.authors == Author.ASSISTANT].tolist()) == " yes</s>"
    assert (tokens.turns == (tokens.authors == Author.ASSISTANT)).all()
    llama = Tokenizer.load(real_tokenizer("llama3", tmp_path_factory))
    tokens = Renderer(llama, None).render(Completion("The answer is hello", "world"))
    assert llama.encode("The answer is helloworld", special_tokens=True) == tokens.ids[:-1].tolist()
    assert llama.decode(tokens.ids[tokens.authors == Author.ASSISTANT].tolist()).endswith("world<|eot_id|>")


def test_choosing_a_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    assert make_renderer(tokenizer, None).template is None
    with pytest.raises(UsageError, match="did you mean 'chatml'"):
        make_renderer(tokenizer, "chatlm")
    with pytest.raises(UsageError, match="does not exist"):
        make_renderer(tokenizer, str(tmp_path / "absent.jinja"))
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    tokens = make_renderer(tokenizer, str(tmp_path / "own.jinja")).render(Conversation((Message("assistant", "x"),)))
    assert tokens.text == "x</s>" and tokens.authors.tolist() == [3, 3]


def test_parse_takes_off_what_ends_a_turn(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    renderer = make_renderer(tokenizer, "chatml")
    assert renderer.parse("fine<|im_end|>\n<|im_start|>user") == Message("assistant", "fine")
    assert renderer.parse(tokenizer.encode("fine</s>")) == Message("assistant", "fine")


def test_rendering_is_fast(tmp_path: Path) -> None:
    import time

    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    template = make_renderer(tokenizer, "chatml").template
    assert template is not None
    chat = Conversation((Message("user", "hello"), Message("assistant", "there")))
    best = min(_seconds(template, chat, time.thread_time) for _ in range(5))
    assert best < 300e-6


def _seconds(template: ChatTemplate, chat: Conversation, clock: object) -> float:
    assert callable(clock)
    started = clock()
    for _ in range(100):
        template.render(chat)
    return float(clock() - started) / 100


def test_named_templates_of_the_checkpoint(tmp_path: Path) -> None:
    """``tool_use`` in place of the default where there are tools; any of them by its name, before one of ours."""
    folder = with_config(byte_tokenizer(tmp_path))
    turns = "{% for m in messages %}{{ m.content }}{{ unk_token }}</s>{% endfor %}"
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    (folder / "additional_chat_templates").mkdir()
    names = {"tool_use": "{{ tools[0].function.name }}" + turns, "rag": "R" + turns, "chatml": "C" + turns}
    for name, source in names.items():
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(source)
    chat = talk("a", "b")
    tokenizer = Tokenizer.load(folder)
    with pytest.raises(UsageError, match=r"no chat template.*alpaca, chatml, .*rag, tool_use"):
        make_renderer(tokenizer, None).render(chat)
    (folder / "chat_template.jinja").write_text("D" + turns)
    tokenizer = Tokenizer.load(folder)
    renderer = make_renderer(tokenizer, None)
    assert renderer.render(chat).text == "Da<unk></s>b<unk></s>"
    with_tools = Conversation(chat.messages, (TOOL,))
    assert renderer.render(with_tools).text == "get_weathera<unk></s>b<unk></s>"
    assert tokenizer.decode(renderer.prompt_ids(chat.messages[:1], [TOOL])) == "get_weathera<unk></s>"
    assert make_renderer(tokenizer, "rag").render(chat).text == "Ra<unk></s>b<unk></s>"
    assert make_renderer(tokenizer, "chatml").render(chat).text.startswith("Ca")
    with pytest.raises(UsageError, match=r"did you mean 'rag'.*known: alpaca, .*rag, tool_use, "):
        make_renderer(tokenizer, "raag")


def test_two_markers_that_end_a_turn(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path, extra=("<e>",))))
    source = "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<e></s>' }}{% endfor %}"
    tokens = Renderer(tokenizer, ChatTemplate(source, name="two")).render(talk("a", "b", "c", "d"))
    assert spoken(tokenizer, tokens) == ["b<e></s>", "d<e></s>"]


def test_an_end_marker_is_not_cut_into_what_may_follow(tmp_path: Path) -> None:
    """Here both ``<user>`` and ``</s>`` follow it, which begin alike."""
    tokenizer = Tokenizer.load(with_config(byte_tokenizer(tmp_path)))
    source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}</s>"
    renderer = Renderer(tokenizer, ChatTemplate(source, name="alike", eos_token="</s>"))
    assert renderer.stop_strings == ("<end>",)
    assert spoken(tokenizer, renderer.render(talk("a", "b", "c", "d"))) == ["b<end>", "d<end></s>"]
