"""What a template is told besides the chat: names that it reads, values, and defaults that are written into it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from helpers_chat import byte_tokenizer, transformers_render
from helpers_data import shared

from whippet.chat.messages import Conversation, Message
from whippet.chat.render import make_renderer
from whippet.chat.template import ChatTemplate
from whippet.chat.template_variables import read_by, with_defaults
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import DataError, UsageError

CHAT = Conversation((Message("user", "Why?"), Message("assistant", "Because.")))
NOW = datetime(2026, 11, 25)
THINKING = """{%- for m in messages %}{{ '<' + m.role + '>' + m.content + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"""
VALUES = {
    "flag": False,
    "whole": -3,
    "real": 0.25,
    "text": "a \"b\" 'c' \\ %} {{ x }} é 𝄞\n",
    "many": [1, [True, "x"], {"k": "v"}],
}
"""Of every kind, with what could end a literal or a block."""


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("{% if not date is defined %}{% set date = '1' %}{% endif %}{{ date }}", {"date"}),
        ("{% if messages %}{% set x = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}", set()),
        ("{% if messages %}{% set x = 1 %}{% else %}{{ raise_exception('no') }}{% endif %}{{ x }}", set()),
        ("{% if messages %}{% set x = 1 %}{% endif %}{{ x }}", {"x"}),
        ("{% if tools %}{% set x = 1 %}{% elif y %}{% endif %}{{ x }}", {"x", "y"}),
        ("{% for m in messages if m == who %}{% set x = loop.index %}{{ x }}{% endfor %}{{ x }}", {"x", "who"}),
        ("{% macro a(n, o=p) %}{{ n ~ o ~ caller }}{{ b(q) }}{% endmacro %}{% macro b() %}{% endmacro %}", {"p", "q"}),
        ("{% set x = x or 1 %}{% set y %}{{ z }}{% endset %}{{ y }}{{ range(3) }}{{ eos_token }}", {"x", "z"}),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{% generation %}{{ ns.a }}{{ g }}{% endgeneration %}", {"g"}),
        ("{% if %}", set()),
        ("{{ " + "(" * 5000 + "x" + ")" * 5000 + " }}", set()),
        ("{{ " + "x + " * 2500 + "x }}", set()),
    ],
)  # fmt: skip
def test_which_names_a_template_reads(source: str, read: set[str]) -> None:
    assert read_by(source) == read


def test_real_templates_read_what_they_document() -> None:
    folder = shared("chat_templates", "llama.cpp")
    llama = (folder / "meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    assert read_by(llama) == {"builtin_tools", "custom_tools", "date_string", "tools_in_user_message"}
    assert read_by((folder / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text()) == set()
    # Asked for beside `is defined`, and set by the template itself only if the chat has a system message.
    assert read_by((folder / "mistralai-Mistral-Nemo-Instruct-2407.jinja").read_text()) == {"system_message"}


@pytest.mark.parametrize("start", ["", "\n", "  ", "{# a #}\n", "  {% set a = 1 %}\n"])
def test_defaults_are_what_is_told(start: str) -> None:
    """By us and by transformers: a template with defaults gives what the bare one gives that is told them."""
    source = start + "".join(f"{{{{ {name} | tojson }}}}\n" for name in VALUES)
    written = with_defaults(source, {**VALUES, "unread": 1})
    told = ChatTemplate(source, name="t", variables=VALUES).render(CHAT)
    assert ChatTemplate(written, name="t").render(CHAT) == told
    assert (
        transformers_render(written, CHAT, False, NOW)
        == told
        == transformers_render(source, CHAT, False, NOW, **VALUES)
    )
    assert "unread" not in written and with_defaults(written, VALUES) == written
    assert with_defaults(source, {}) == source
    assert ChatTemplate(written, name="t", variables={**VALUES, "whole": 5}).render(CHAT) == told.replace("-3", "5")


def test_a_recipes_and_a_records_variables(tmp_path: Path) -> None:
    """Both reach prompts and training, and the record's goes before."""
    tokenizer = Tokenizer.load(_folder(tmp_path))
    plain, told = make_renderer(tokenizer, None), make_renderer(tokenizer, None, {"enable_thinking": False})
    asked = CHAT.messages[:1]

    def prompt(renderer: object, **variables: object) -> str:
        return tokenizer.decode(renderer.prompt_ids(asked, variables=variables))  # type: ignore[attr-defined]

    assert prompt(plain) == "<user>Why?<|end|><assistant>"
    assert prompt(told) == prompt(plain, enable_thinking=False) == "<user>Why?<|end|><assistant><think></think>"
    assert prompt(told, enable_thinking=True) == prompt(plain)
    own = Conversation(CHAT.messages, template_variables={"enable_thinking": False})
    assert plain.render(own, add_generation_prompt=True).text.endswith("<assistant><think></think>")
    assert plain.render(CHAT, add_generation_prompt=True).text.endswith("<|end|><assistant>")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"enable_thinkng": True}, "did you mean 'enable_thinking'?"),
        ({"date_string": "x"}, "of the checkpoint reads no variable 'date_string'; it reads enable_thinking"),
        ({"messages": []}, "'messages' comes from the conversation"),
        ({"add_generation_prompt": True}, "cannot be set"),
        ({"bos_token": "x"}, "cannot be set"),
        ({"enable_thinking": None}, "enable_thinking is None"),
        ({"enable_thinking": [float("nan")]}, "enable_thinking is nan"),
        ({"enable_thinking": {"a": "\ud800"}}, "half of a UTF-16 pair"),
    ],
)
def test_what_cannot_be_told_is_named(variables: dict[str, object], said: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(_folder(tmp_path))
    with pytest.raises(UsageError) as caught:
        make_renderer(tokenizer, None, variables)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    if "comes from" in said or "reads" in said or "mean" in said:
        with pytest.raises(DataError) as caught_data:
            make_renderer(tokenizer, None).render(Conversation(CHAT.messages, template_variables=variables))
        assert said in str(caught_data.value) and "chat_template_kwargs" in str(caught_data.value)


def test_without_a_template_nothing_reads_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        make_renderer(Tokenizer.load(_folder(tmp_path, template=None)), None, {"enable_thinking": True})


def test_saved_files_take_the_values_as_their_defaults(tmp_path: Path) -> None:
    """The checkpoint's template for tools too, and each only what it reads."""
    folder = _folder(tmp_path / "a")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0].content }}{{ style }}<|end|>")
    tokenizer = Tokenizer.load(folder)
    renderer = make_renderer(tokenizer, None, {"enable_thinking": False, "style": "brief"})
    assert renderer.template is not None and renderer.with_tools is not None
    tokenizer.save(tmp_path / "b", chat_template=renderer.template.source, variables=renderer.variables)
    again = make_renderer(Tokenizer.load(tmp_path / "b"), None)
    assert again.prompt_ids(CHAT.messages[:1]) == renderer.prompt_ids(CHAT.messages[:1])
    assert again.with_tools is not None
    assert again.with_tools.render(CHAT) == renderer.with_tools.render(CHAT) == "Why?brief<|end|>"
    assert "style" not in (tmp_path / "b" / "chat_template.jinja").read_text()


def _folder(path: Path, template: str | None = THINKING) -> Path:
    folder = byte_tokenizer(path)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "<|end|>"}')
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
