"""What is the template's own fault is said of the template, at once; what the data do is still said of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_chat import byte_tokenizer

from whippet.chat.messages import Conversation, Message
from whippet.chat.render import make_renderer
from whippet.chat.template import ChatTemplate
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import DataError, ModelError

TURNS = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    folder = byte_tokenizer(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return Tokenizer.load(folder)


def written(folder: Path, source: str) -> str:
    (folder / "own.jinja").write_text(source)
    return str(folder / "own.jinja")


def chat(first: str) -> Conversation:
    return Conversation((Message("user", first), Message("assistant", "b")))


@pytest.mark.parametrize("twice", ["{{ bos_token * 2 }}", "<s>{{ bos_token }}"])
def test_a_template_that_doubles_bos(tokenizer: Tokenizer, tmp_path: Path, twice: str) -> None:
    with pytest.raises(ModelError, match=r"^chat template .*own\.jinja begins every chat with two '<s>'") as caught:
        make_renderer(tokenizer, written(tmp_path, twice + TURNS))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_data_that_begin_with_bos_are_still_to_blame(tokenizer: Tokenizer, tmp_path: Path) -> None:
    renderer = make_renderer(tokenizer, written(tmp_path, "{{ bos_token }}" + TURNS))
    assert renderer.render(chat("a")).text == "<s>a</s>b</s>"
    with pytest.raises(DataError, match=r"two '<s>': the template writes one and so does the first message"):
        renderer.render(chat("<s>a"))


def test_a_template_that_refuses_the_plainest_chat_may_take_the_data(tokenizer: Tokenizer, tmp_path: Path) -> None:
    picky = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
    renderer = make_renderer(tokenizer, written(tmp_path, picky))
    whole = Conversation((Message("system", "s"), Message("user", "a"), Message("assistant", "b")))
    assert renderer.render(whole).text == "s</s>a</s>b</s>"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for i in range(9999999) %}x{% endfor %}", "OverflowError: Range too big"),
        ("{{ '%c' % 99999999999 }}", "OverflowError"),
        (r"{{ '\ud83d' }}", r"it writes '\\ud83d', half of a UTF-16 pair"),
    ],
)
def test_a_template_that_asks_for_too_much(tokenizer: Tokenizer, tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(ModelError, match=rf"^chat template .*own\.jinja was stopped: {said}") as caught:
        make_renderer(tokenizer, written(tmp_path, source + TURNS))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_it_may_ask_for_it_only_now_and_then() -> None:
    """Even so it is no fault of the record, which ``skip_bad`` would leave out."""
    source = "{% if messages[0].content == 'many' %}{{ range(9999999) }}{% endif %}" + TURNS
    template = ChatTemplate(source, name="moody")
    assert template.render(chat("a")) == "a</s>b</s>"
    with pytest.raises(ModelError, match="chat template moody was stopped: OverflowError"):
        template.render(chat("many"))
