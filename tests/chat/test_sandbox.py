"""Templates of strangers: none escapes, none runs for ever, none eats the memory; in process and in threads."""

from __future__ import annotations

import itertools
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from whippet.chat.messages import Conversation, Message
from whippet.chat.template import MAX_SOURCE, ChatTemplate
from whippet.chat.template import _compile as compile_template
from whippet.errors import DataError, ModelError

CHAT = Conversation((Message("user", "hello"), Message("assistant", "there")))
MAX_SECONDS = 2.0
MAX_BYTES = 64 * 1024**2

OBJECTS = (
    "''", "[]", "{}", "()", "1", "1.5", "true", "none", "messages", "messages[0]", "range(3)", "dict", "namespace()",
    "raise_exception", "strftime_now", "bos_token", "nothing", "('a'|safe)", "range", "messages[0].items()", "''.join",
    "[].index", "loop_", "self",
)  # fmt: skip
CLIMBS = (
    "{o}.__class__.__mro__[1].__subclasses__()",
    "{o}['__class__']['__base__']",
    "{o}|attr('__class__')|attr('__mro__')",
    "{o}.__init__.__globals__['__builtins__']",
    "{o}|map(attribute='__class__')|list",
    "'{{0.__class__.__mro__}}'.format({o})",
    "('{{0.__class__}}'|safe).format({o})",
    "'{{0.__class__}}'.format_map({{'0': {o}}})",
)
GADGETS = (
    "cycler.__init__.__globals__.os.popen('touch CANARY').read()",
    "joiner.__init__.__globals__.os.system('touch CANARY')",
    "lipsum.__globals__['os'].popen('touch CANARY').read()",
    "namespace.__init__.__globals__.os.popen('touch CANARY').read()",
    "self.__init__.__globals__.__builtins__.__import__('os').system('touch CANARY')",
    "self._TemplateReference__context.cycler.__init__.__globals__.os",
    "strftime_now.__globals__['__builtins__']['open']('CANARY', 'w')",
    "raise_exception.__globals__.__builtins__.open('CANARY', 'w')",
    "dict.__self__.globals",
    "strftime_now.__self__._local",
    "strftime_now.__func__.__globals__",
    "().__class__.__bases__[0].__subclasses__()[40]('/etc/passwd').read()",
    "''.__class__.mro()",
    "messages.__class__.__init__.__globals__",
    "get_flashed_messages.__globals__",
    "config.__class__.__init__.__globals__",
    "request.application.__globals__",
    "url_for.__globals__",
    "environment.globals",
    "context.environment",
    "''|attr('\\x5f\\x5fclass\\x5f\\x5f')",
    "''|attr(['_'*2,'class','_'*2]|join)",
    "''[('_'*2) ~ 'class' ~ ('_'*2)]",
    "'%s' % ''.__class__",
    "(messages|groupby('__class__'))[0]",
    "messages|sort(attribute='__class__.__name__')|list",
    "messages|selectattr('__class__')|list",
    "''.format.__self__.__class__",
    "(''|safe).format.__globals__",
    "'{0.__globals__}'.format(raise_exception)",
    "'{0.gi_frame.f_back}'.format(messages|map('upper'))",
    "(messages|map('upper')).gi_frame.f_globals",
    "(messages|select).gi_code",
    "''.encode().__class__",
    "(1).to_bytes(1, 'big')",
    "messages.append(1)",
    "messages.clear()",
    "messages[0].update(role='x')",
    "messages[0].pop('role')",
    "messages[0].setdefault('a', 1)",
    "namespace(__class__=1)",
    "namespace({'__init__': 1})",
    "dict.fromkeys(messages)",
    "{}|xmlattr",
    "''|pprint",
    "''|urlize",
    "''.translate({})",
    "''.maketrans({})",
    "''.expandtabs(9)",
    "raise_exception.unsafe_callable",
    "messages|random",
)
BLOCKS = (
    "{% include 'CANARY' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'CANARY' %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% autoescape true %}{% endautoescape %}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__class__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% for a in messages %}{{ loop.__class__ }}{% endfor %}",
    "{% for a in messages %}{{ loop._iterable }}{% endfor %}",
    "{% for a in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% set messages[0].role = 'x' %}",
    "{% do messages.append(1) %}",
    "{% debug %}",
)
PAYLOADS = tuple(
    f"{{{{ {climb.format(o=thing)} }}}}" for thing, climb in itertools.product(OBJECTS, CLIMBS)
) + tuple(f"{{{{ {gadget} }}}}" for gadget in GADGETS) + BLOCKS  # fmt: skip
TELLING = ("<class", "<function", "<module", "<built-in", "__builtins__", "object at 0x", "frame at", "root:")


def attempt(source: str, conversation: Conversation = CHAT) -> str:
    """The rendered text, empty if the template is refused."""
    try:
        return ChatTemplate(source, name="hostile").render(conversation)
    except (ModelError, DataError):
        return ""


def test_two_hundred_payloads_and_no_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(PAYLOADS) >= 200
    for payload in PAYLOADS:
        text = attempt(payload)
        assert not any(sign in text for sign in TELLING), f"{payload} printed {text[:200]}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("payload", BLOCKS[:7])
def test_what_chat_templates_do_not_need_is_refused(payload: str) -> None:
    with pytest.raises(ModelError):
        ChatTemplate(payload, name="hostile").render(CHAT)


LOOP = "{% for a in range(9999) %}"
BOMBS = {
    "nested loops": LOOP * 4 + "{% set x = a %}" + "{% endfor %}" * 4,
    "filtered loop": LOOP + LOOP.replace(" %}", " if range(9999)|list|length < 0 %}") + "{% endfor %}" * 2,
    "macro for ever": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros doubling": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "range": "{{ range(10**12) }}",
    "range list": "{{ range(99999)|list|length }}" * 200,
    "times": "{{ 'a' * 10**10 }}",
    "list times": "{% set x = [1] * 10**9 %}",
    "times twice": "{% set x = 'a' * 10**6 %}{% set y = x * 10**6 %}",
    "doubling": "{% set ns = namespace(x='ab') %}" + LOOP + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by tilde": "{% set ns = namespace(x='ab') %}" + LOOP + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling lists": "{% set ns = namespace(x=[1]) %}" + LOOP + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "shared nest": "{% set ns = namespace(x=[1]) %}" + LOOP + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "shared nest, dict": "{% set ns = namespace(x=1) %}" + LOOP + "{% set ns.x = {1:ns.x,2:ns.x} %}{% endfor %}",
    "shared nest, tuple": "{% set ns = namespace(x=1) %}" + LOOP + "{% set ns.x = (ns.x,ns.x) %}{% endfor %}",
    "two nests compared": "{% set ns = namespace(x=[1],y=[1]) %}" + LOOP
    + "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "namespaces nested": "{% set a = namespace(x=1) %}" + "".join(
        f"{{% set n{i + 1} = namespace(x=[n{i},n{i}]) %}}" for i in range(40)) + "{{ n40 }}",
    "deep list": "{% set ns = namespace(x=[]) %}" + LOOP * 2 + "{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}",
    "power": "{{ 10**(10**10) }}",
    "power chain": "{% set ns = namespace(x=9) %}" + LOOP + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "negative power": "{{ 10**(-(10**9)) }}",
    "round": "{{ 5|round(-1000000000) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent key width": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "percent repeated": "{% set x = 'a' * 10**6 %}{{ ('%(x)s' * 9999) % {'x': x} }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format nested width": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format precision": "{{ '{:.1000000000f}'.format(1.0) }}",
    "format repeated": "{% set x = 'a' * 10**6 %}{{ ('{0}' * 9999).format(x) }}",
    "format conversion": "{% set x = ['a' * 1000] * 1000 %}{{ ('{0!r}' * 9999).format(x) }}",
    "center": "{{ 'a'.center(10**10) }}",
    "center filter": "{{ 'a'|center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "replace nothing": "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "replace filter": "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
    "replace filter none": "{{ ('a' * 10**6)|replace('', 'b' * 10**4) }}",
    "join": "{{ ('a' * 10**6).join('b' * 10**6) }}",
    "join filter": "{{ range(9999)|join('a' * 10**6) }}",
    "join generator": "{{ range(9999)|map('string')|join('a' * 10**6) }}",
    "split": "{% set x = ('ab ' * 10**6).split() %}{% set y = ('ab ' * 10**6).split() %}",
    "split separator": "{% set x = ('abcd' * 700000).split('d') %}",
    "splitlines": "{% set x = ('ab\\n' * 10**6).splitlines() %}",
    "list of text": "{{ ('ɐ' * 10**6)|list|length }}",
    "loop over text": "{% for c in 'ɐ' * 10**6 %}{% if loop.length %}{% endif %}{% endfor %}",
    "indent width": "{{ 'a\\nb'|indent(10**10) }}",
    "indent lines": "{{ ('a\\n' * 10**5)|indent(10**5) }}",
    "tojson indent": "{{ messages|tojson(indent=10**10) }}",
    "tojson nest": "{{ ([['a' * 100] * 100] * 1000)|tojson }}",
    "tojson separators": "{{ range(999)|list|tojson(separators=('a' * 10**6, 'b')) }}",
    "batch": "{{ [1]|batch(10**10, 0)|list }}",
    "slice": "{{ [1]|slice(10**10, 0)|list }}",
    "sum of lists": "{{ ([[1] * 99] * 99)|sum(start=[]) }}",
    "hash collisions": "{% set x = dict(range(9999)|map('int')|list|batch(2)) %}" + LOOP
    + "{{ (range(9999)|list)|unique|list }}{% endfor %}",
    "output in a macro": "{% set x = 'a' * 10**6 %}{% macro m() %}" + LOOP
    + "{{ x }}{% endfor %}{% endmacro %}{{ m() }}",
    "output in a set block": "{% set x = 'a' * 10**6 %}{% set y %}" + LOOP + "{{ x }}{% endfor %}{% endset %}",
    "output": "{% set x = 'a' * 10**6 %}" + LOOP + "{{ x }}{% endfor %}",
    "static output": "{% macro m() %}" + LOOP * 2 + "a" * 9999 + "{% endfor %}" * 2 + "{% endmacro %}{{ m() }}",
    "static output outside": LOOP * 2 + "a" * 9999 + "{% endfor %}" * 2,
    "kept slices": "{% set x = range(9999)|list %}{% macro m(y) %}{% set z = y[:] %}{{ m(z) }}{% endmacro %}{{ m(x) }}",
    "appended slices": "{% set x = range(9999)|list %}{% set ns = namespace(y=[]) %}" + LOOP
    + "{% set ns.y = ns.y + [x[:]] %}{% endfor %}",
    "upper": "{% set ns = namespace(x='ŉ' * 10**5) %}" + LOOP + "{% set ns.x = ns.x.upper() ~ ns.x %}{% endfor %}",
    "escape": "{% set ns = namespace(x='&' * 10**5) %}" + LOOP + "{% set ns.x = ns.x|e|string|e %}{% endfor %}",
    "strftime": "{{ strftime_now('%c' * 10**6) }}",
    "nested call": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 15 + "x" * 999 + "{% endcall %}" * 15,
    "generation marks": LOOP * 2 + "{% generation %}x{% endgeneration %}" + "{% endfor %}" * 2,
    "sorting": "{% set x = range(40000)|list %}" + LOOP + "{% set y = x|sort(reverse=true) %}{% endfor %}",
    "many names": "".join(f"{{% set a{i} = 'x' * 10**6 %}}" for i in range(900)),
}  # fmt: skip


def measured(source: str) -> tuple[str, float, int]:
    """What comes of it: the error's class name, seconds of this thread's CPU, bytes at the highest. The clock runs
    without the tracing of memory, which slows everything several times."""
    outcome, seconds = "", 0.0
    for traced in (False, True):
        compile_template.cache_clear()
        if traced:
            tracemalloc.start()
        started = time.thread_time()
        try:
            ChatTemplate(source, name="bomb").render(CHAT)
        except (ModelError, DataError) as error:
            outcome = type(error).__name__
        seconds = seconds or time.thread_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return outcome, seconds, peak


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_stopped(name: str) -> None:
    outcome, seconds, peak = measured(BOMBS[name])
    assert seconds < MAX_SECONDS, f"{seconds:.2f} s"
    assert peak < MAX_BYTES, f"{peak / 2**20:.0f} MiB"
    harmless = ("namespaces nested", "negative power", "nested call", "static output", "tojson nest", "many names")
    assert outcome or name in harmless, "it rendered"


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 20000 + "]" * 20000 + " }}",
        "{{ " + "a.b" * 20000 + " }}",
        "{{ 1" + "+1" * 30000 + " }}",
        "{% if a %}" * 3000 + "{% endif %}" * 3000,
        "{% for a in b %}" * 60 + "{% endfor %}" * 60,
        "{{ 'a'|" + "upper|" * 9000 + "upper }}",
        "{{ -" + "-" * 60000 + "1 }}",
        "{{ 0x" + "f" * 60000 + " ** 2 }}",
        "{{ a }}" * 9000,
        "x" * (MAX_SOURCE + 1),
        "{% if %}",
        "{{ 'a'|nofilter }}",
        "{{ a is notest }}",
        "{% nosuchtag %}",
        "{{ 'unterminated }}",
    ],
)
def test_hostile_source_is_compiled_or_refused_soon(source: str) -> None:
    _, seconds, peak = measured(source)
    assert seconds < MAX_SECONDS, f"{seconds:.2f} s"
    assert peak < MAX_BYTES, f"{peak / 2**20:.0f} MiB"


def test_threads_have_budgets_of_their_own() -> None:
    template = ChatTemplate(
        "{% for a in range(messages[0].content|int) %}{% set x = 'y' * 999 %}{% endfor %}ok", name="t"
    )
    results: dict[int, str] = {}

    def work(number: int) -> None:
        content = "99999999" if number % 2 else "50"
        try:
            results[number] = template.render(Conversation((Message("user", content),)))
        except (ModelError, DataError):
            results[number] = "stopped"

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: "stopped" if number % 2 else "ok" for number in range(8)}


def test_a_long_chat_is_no_bomb() -> None:
    source = (
        "{% set ns = namespace(kept=[]) %}{% for m in messages %}{% set ns.kept = ns.kept + [m] %}{% endfor %}"
        "{% for m in ns.kept[1:] %}<{{ m.role }}>{{ m.content|trim }}{{ '</end>' }}{% endfor %}"
    )
    messages = tuple(Message("user" if turn % 2 else "assistant", "word " * 200) for turn in range(600))
    text = ChatTemplate(source, name="long").render(Conversation(messages))
    assert text.count("</end>") == 599
    huge = Conversation((Message("user", "x"), Message("user", "y" * 8_000_000)))
    assert len(ChatTemplate(source, name="long").render(huge)) > 8_000_000


def test_errors_say_whose_fault_it_is() -> None:
    with pytest.raises(DataError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", name="strict").render(CHAT)
    with pytest.raises(ModelError, match="line 2"):
        ChatTemplate("\n{% if %}", name="broken").render(CHAT)
    with pytest.raises(ModelError, match="stopped"):
        ChatTemplate("{{ 'a' * 10**9 }}", name="bomb").render(CHAT)
