"""Dialogues over the world's questions: one to many turns, some with a system prompt, some with functions to call.

Comes in: a random generator. Goes out: a record in the ``messages`` form, for training or held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from world import dates, facts, language, numbers, reading, talk, tools
from world.question import Maker, Question, sentence

MAKERS: dict[str, tuple[tuple[float, Maker], ...]] = {
    "arithmetic": (
        (4, numbers.add), (4, numbers.subtract), (2, numbers.multiply), (1.5, numbers.divide), (1, numbers.add_three),
        (1, numbers.double_or_half), (3, numbers.story),
    ),
    "units": ((1, numbers.units),),
    "comparing": (
        (2, numbers.greater), (1, numbers.is_greater), (1.5, numbers.extreme), (0.5, numbers.even_or_odd),
        (1, numbers.older),
    ),
    "sorting": ((2, numbers.sort_numbers), (1, numbers.sort_words)),
    "dates": (
        (2, dates.day_shift), (1, dates.month_shift), (1, dates.month_fact), (2, dates.date_shift),
        (1, dates.days_between), (1.5, dates.clock),
    ),
    "facts": (
        (2, facts.capital), (1, facts.country), (2, facts.opposite), (1.5, facts.animal_fact),
        (0.5, facts.job_fact), (1.5, facts.kind_of),
    ),
    "grammar": ((1, language.plural_of), (1, language.past_of), (1, language.number_words)),
    "colours": ((1, facts.mix), (1, facts.colour_of), (2, facts.colour_here)),
    "letters": ((4, language.letters), (1, language.next_letter)),
    "lists": ((1, language.word_list),),
    "reading": (
        (3, reading.about_one), (2, reading.who), (2, reading.codes), (1.5, reading.repeat), (1, reading.swap),
        (1, reading.count_things),
    ),
    "formats": ((2, reading.make_json), (2, reading.fields_of), (1, reading.make_list)),
    "talk": ((1, talk.talk),),
}  # fmt: skip
WEIGHTS = {
    "arithmetic": 6, "units": 1.5, "comparing": 2, "sorting": 2, "dates": 3, "facts": 2, "grammar": 1.5, "colours": 1.5,
    "letters": 2, "lists": 1, "reading": 4, "formats": 2.5, "talk": 0.6,
}  # fmt: skip
TOPICS = (*MAKERS, "tools")
SYSTEM = (
    "You are a helpful assistant.", "You are Whippet.", "Answer the questions.", "You are a friendly helper.",
    "Help the user.", "You are Whippet, a small and quick model.",
)  # fmt: skip
BRIEF = ("Answer with the result only.", "Be brief.", "Only the result, please.", "Answer as briefly as you can.")
POLITE = ("Please: ", "Tell me: ", "A question: ", "Quick question: ", "Next one: ", "Now this: ", "OK. ", "And now: ")


def question(draw: Random, topic: str, given: tuple[str, ...] = ()) -> Question:
    """A question of a topic, held out or not."""
    if topic == "tools":
        return tools.use(draw, given or tools.choose_tools(draw))
    weights, makers = zip(*MAKERS[topic], strict=True)
    return _varied(draw, draw.choices(makers, weights)[0](draw))


def wanted(make: Callable[[], Question], held_out: bool) -> Question:
    """The first question that is, or is not, held out."""
    while True:
        made = make()
        if made.held_out == held_out:
            return made


def dialogue(draw: Random) -> dict[str, Any]:
    """A training record of one to twelve turns; none of its questions is held out."""
    with_tools = draw.random() < 0.12
    given = tools.choose_tools(draw) if with_tools else ()
    brief = draw.random() < 0.2
    messages = _opening(draw, brief)
    called = _introduced(draw, messages) if draw.random() < 0.08 else None
    previous: Question | None = None
    for _ in range(draw.randint(1, 5 if with_tools else 12)):
        previous = wanted(lambda last=previous: _next(draw, given, last), False)  # type: ignore[misc]
        messages += turns(previous, brief)
    if called is not None:
        messages += _name_asked(draw, called)
    return {"messages": messages} | ({"tools": [tools.SCHEMAS[one] for one in given]} if given else {})


def held_out(draw: Random, topic: str) -> dict[str, Any]:
    """A record whose last message answers a held-out question; sometimes another turn goes before it."""
    brief = draw.random() < 0.2
    messages = _opening(draw, brief)
    given = tools.choose_tools(draw) if topic == "tools" else ()
    if draw.random() < 0.3:
        other = draw.choice([one for one in MAKERS if one != topic])
        messages += turns(wanted(lambda: question(draw, other), False), brief)
    asked = wanted(lambda: question(draw, topic, given), True)
    messages += turns(asked, brief)[: 2 if asked.call is not None else None]
    return {"topic": topic, "messages": messages} | ({"tools": list(asked.tools)} if given else {})


def turns(asked: Question, brief: bool) -> list[dict[str, Any]]:
    """The question and its answer as messages, with the function's call and result if it has them."""
    said = {"role": "assistant", "content": asked.brief if brief else asked.answer}
    if asked.call is None:
        return [{"role": "user", "content": asked.ask}, said]
    function, arguments = asked.call
    call = {"type": "function", "function": {"name": function, "arguments": arguments}}
    return [
        {"role": "user", "content": asked.ask},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": asked.result, "name": function},
        said,
    ]


def _opening(draw: Random, brief: bool) -> list[dict[str, Any]]:
    if brief:
        return [{"role": "system", "content": draw.choice(BRIEF)}]
    return [{"role": "system", "content": draw.choice(SYSTEM)}] if draw.random() < 0.15 else []


def _next(draw: Random, given: tuple[str, ...], previous: Question | None) -> Question:
    """The next question: on the number just found, to a function, or on anything."""
    if previous is not None and previous.value is not None and draw.random() < 0.15:
        return _follow_up(draw, previous.value)
    if given and draw.random() < 0.6:
        return tools.use(draw, given)
    return question(draw, draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])


def _follow_up(draw: Random, value: int) -> Question:
    if value > 1 and draw.random() < 0.5:
        less = ("now take away {b}.", "and minus {b}?", "subtract {b} from that.", "less {b}?")
        return numbers.difference_of(draw, value, draw.randint(1, min(value, 50)), less)
    more = ("now add {b}.", "and plus {b}?", "add {b} to that.", "{b} more?")
    return numbers.sum_of(draw, value, draw.randint(1, 50), more)


def _varied(draw: Random, asked: Question) -> Question:
    """The question as hurried or polite people type it."""
    kind = draw.random()
    ask = asked.ask
    if kind < 0.08 and ask.endswith("?"):
        return replace(asked, ask=ask[:-1])
    if kind < 0.16 and ask.split(" ", 1)[0] in (
        "What",
        "Which",
        "How",
        "Is",
        "Sort",
        "Write",
        "Add",
        "Spell",
        "Convert",
    ):
        return replace(asked, ask=ask[0].lower() + ask[1:].removesuffix("?"))
    if kind < 0.24:
        return replace(asked, ask=draw.choice(POLITE) + sentence(ask))
    return asked


def _introduced(draw: Random, messages: list[dict[str, Any]]) -> str:
    called = tools.name(draw)
    ask = draw.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.")).format(n=called)
    messages += [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": f"Nice to meet you, {called}!"},
    ]
    return called


def _name_asked(draw: Random, called: str) -> list[dict[str, Any]]:
    ask = draw.choice(("What is my name?", "Do you know my name?", "What am I called?"))
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": f"Your name is {called}."}]
