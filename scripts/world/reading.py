"""Questions whose answer stands in the question: finding, repeating, and writing in another form.

Names and places are drawn at random and partly made up, so that copying is the only way to be right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from world.question import Question, article, listed, worded
from world.words import (
    ANIMALS,
    BREEDS,
    COLOURS,
    DAYS,
    JOBS,
    MONTHS,
    THINGS,
    city,
    in_words,
    made_up,
    name,
    names,
    plural,
    words,
)


@dataclass(frozen=True)
class Person:
    """Somebody whom one sentence describes."""

    name: str
    age: int
    city: str
    job: str
    pet: str
    pet_name: str
    thing: str
    colour: str
    day: str
    month: str
    weight: int


def person(draw: Random, called: str) -> Person:
    pet = draw.choice(BREEDS) if draw.random() < 0.5 else draw.choice(ANIMALS)
    return Person(
        called, draw.randint(2, 99), city(draw), draw.choice(JOBS), pet, name(draw), draw.choice(THINGS),
        draw.choice(COLOURS), draw.choice(DAYS), draw.choice(MONTHS), draw.randint(2, 99),
    )  # fmt: skip


CLAUSES = {
    "age": ("is {p.age} years old", "is {p.age}", "turned {p.age} in {p.month}"),
    "city": (
        "lives in {p.city}",
        "comes from {p.city}",
        "moved to {p.city}",
        "works in {p.city}",
        "was born in {p.city}",
    ),
    "job": ("is {job}", "works as {job}", "wants to be {job}", "became {job}"),
    "pet": ("has {pet}", "has {pet} called {p.pet_name}", "keeps {pet}", "looks after {pet}"),
    "thing": ("has {thing}", "bought {thing}", "found {thing}", "lost {thing} on {p.day}", "wants {thing}"),
    "day": ("comes on {p.day}", "leaves on {p.day}", "works on {p.day}"),
    "weight": ("weighs {p.weight} kg", "carries {p.weight} kg"),
}
ASKED = {
    "age": (("how old is {p.name}?", "what is the age of {p.name}?"), "{p.name} is {p.age}.", "{p.age}"),
    "city": (
        ("which city is named?", "name the city.", "which place has to do with {p.name}?"),
        "{p.city}",
        "{p.city}",
    ),
    "job": (("what is the job of {p.name}?", "which job is named?"), "{job}", "{job}"),
    "pet": (("which animal does {p.name} have?", "what pet has {p.name}?"), "{pet}", "{pet}"),
    "thing": (("which thing is named?", "what thing has to do with {p.name}?"), "{thing}", "{thing}"),
    "day": (("on which day?", "which day is named?"), "{p.day}", "{p.day}"),
    "weight": (("how many kg?", "what weight is named?"), "{p.weight} kg", "{p.weight} kg"),
}
FRAMES = (
    "{s} {q}", "read this: {s} {q}", "{q} {s}", "text: {s} Question: {q}", "{q} Here is the text: {s}", "\"{s}\" {q}",
)  # fmt: skip


def _parts(one: Person) -> dict[str, object]:
    return {"p": one, "job": article(one.job), "pet": article(one.pet), "thing": f"{article(one.colour)} {one.thing}"}


def _described(draw: Random, one: Person, facts: list[str]) -> str:
    """A sentence that tells ``facts`` about a person."""
    clauses = [draw.choice(CLAUSES[fact]).format(**_parts(one)) for fact in facts]
    return f"{one.name} {listed(clauses)}."


def about_one(draw: Random) -> Question:
    """One attribute out of a sentence about somebody."""
    one = person(draw, name(draw))
    facts = draw.sample(list(CLAUSES), draw.randint(1, 4))
    text = _described(draw, one, facts)
    fact = draw.choice(facts)
    asks, answer, brief = ASKED[fact]
    question = draw.choice(asks).format(**_parts(one))
    ask = draw.choice(FRAMES).format(s=text, q=question[0].upper() + question[1:])
    return Question("reading", f"{text}:{fact}", ask[0].upper() + ask[1:], *_filled(answer, brief, one))


def _filled(answer: str, brief: str, one: Person) -> tuple[str, str]:
    parts = _parts(one)
    return answer.format(**parts), brief.format(**parts)


def who(draw: Random) -> Question:
    """Who of two or three people has an attribute."""
    people = [person(draw, called) for called in names(draw, draw.randint(2, 3))]
    fact = draw.choice(("city", "job", "pet", "thing"))
    if len({getattr(one, fact) for one in people}) < len(people):
        return who(draw)
    clause = draw.choice([text for text in CLAUSES[fact] if "pet_name" not in text])
    told = " ".join(f"{one.name} {clause.format(**_parts(one))}." for one in people)
    one = draw.choice(people)
    asked = clause.format(**_parts(one))
    return Question("reading", f"who:{told}:{asked}", f"{told} Who {asked}?", f"{one.name} {asked}.", one.name)


def codes(draw: Random) -> Question:
    """A value looked up in a table that the question holds."""
    count = draw.randint(2, 5)
    keys = names(draw, count) if draw.random() < 0.5 else words(draw, count)
    kind, values = draw.choice(
        (
            ("code", [str(draw.randint(10, 9999)) for _ in keys]),
            ("price", [f"{draw.randint(1, 99)} euros" for _ in keys]),
            ("place", [city(draw) for _ in keys]),
            ("word", [made_up(draw) for _ in keys]),
        )
    )
    pairs = list(zip(keys, values, strict=True))
    table = draw.choice((", ", "; ")).join(draw.choice(("{} = {}", "{}: {}", "{} {}")).format(k, v) for k, v in pairs)
    wanted, value = draw.choice(pairs)
    asks = ("{t}. What is the {k} of {w}?", "here is each {k}: {t}. Give me that of {w}.", "which {k} has {w}? {t}",
            "look up the {k} of {w} in this table: {t}")  # fmt: skip
    key = f"code:{table}:{wanted}"
    return worded(draw, "reading", key, asks, "{v}", "{v}", as_is=True, t=table, k=kind, w=wanted, v=value)


def repeat(draw: Random) -> Question:
    """Copying a sentence or some words to the letter."""
    kind = draw.random()
    if kind < 0.4:
        text = _described(draw, person(draw, name(draw)), draw.sample(list(CLAUSES), draw.randint(1, 2)))
    elif kind < 0.8:
        text = " ".join(draw.choice((made_up, lambda d: words(d, 1)[0], name))(draw) for _ in range(draw.randint(1, 6)))
    else:
        text = " ".join(str(draw.randint(0, 999)) for _ in range(draw.randint(2, 5)))
    asks = ("repeat: {s}", "say this again: {s}", "copy this: {s}", "write exactly this: {s}", "repeat after me: {s}")
    return worded(draw, "reading", f"repeat:{text}", asks, "{s}", "{s}", as_is=True, s=text)


def swap(draw: Random) -> Question:
    """A sentence with one word replaced."""
    one = person(draw, name(draw))
    fact = draw.choice(("city", "name"))
    text = _described(draw, one, ["city", *draw.sample(("age", "job", "pet"), 1)])
    old = getattr(one, fact)
    new = city(draw) if fact == "city" else name(draw)
    if text.count(old) != 1 or old == new:
        return swap(draw)
    asks = ("write {n} instead of {o}: {s}", "replace {o} by {n}: {s}", "put {n} in the place of {o}: {s}")
    result = text.replace(old, new)
    return worded(draw, "reading", f"swap:{text}:{new}", asks, "{r}", "{r}", as_is=True, n=new, o=old, s=text, r=result)


def make_json(draw: Random) -> Question:
    """Attributes of a sentence as a JSON object; an age may stand in words and then becomes digits."""
    one = person(draw, name(draw))
    spelled = one.age < 21 and draw.random() < 0.5
    kinds = {
        "age": (f"is {in_words(one.age) if spelled else one.age} years old", one.age),
        "city": (f"lives in {one.city}", one.city),
        "job": (f"works as {article(one.job)}", one.job),
        "pet": (f"has {article(one.pet)}", one.pet),
        "weight": (f"weighs {one.weight} kg", one.weight),
        "day": (f"comes on {one.day}", one.day),
    }
    fields = draw.sample(list(kinds), draw.randint(1, 3))
    text = f"{one.name} {listed([kinds[field][0] for field in fields])}."
    value = {"name": one.name} | {field: kinds[field][1] for field in fields}
    asks = ("write as JSON with the keys {k}: {s}", "{s} Give me JSON with {k}.", "JSON with the keys {k}, please: {s}",
            "turn this into JSON ({k}): {s}")  # fmt: skip
    result = json.dumps(value)
    return worded(
        draw, "formats", f"json:{text}", asks, "{r}", "{r}", as_is=True, k=", ".join(value), s=text, r=result
    )  # fmt: skip


def fields_of(draw: Random) -> Question:
    """Attributes of a sentence as ``key: value``, in the order that is asked for."""
    one = person(draw, name(draw))
    kinds = {
        "age": (f"is {one.age} years old", str(one.age)),
        "city": (f"comes from {one.city}", one.city),
        "job": (f"is {article(one.job)}", one.job),
        "pet": (f"keeps {article(one.pet)}", one.pet),
        "weight": (f"weighs {one.weight} kg", f"{one.weight} kg"),
        "month": (f"was born in {one.month}", one.month),
    }
    fields = draw.sample(list(kinds), draw.randint(2, 4))
    text = f"{one.name} {listed([kinds[field][0] for field in fields])}."
    told = {"name": one.name} | {field: kinds[field][1] for field in fields}
    wanted = draw.sample(list(told), draw.randint(1, len(told)))
    asks = ("list {k} from this text: {s}", "{s} Tell me {k}.", "take {k} from: {s}", "find {k}: {s}")
    result = "; ".join(f"{field}: {told[field]}" for field in wanted)
    return worded(
        draw, "formats", f"fields:{text}:{wanted}", asks, "{r}", "{r}", as_is=True, k=listed(wanted), s=text, r=result
    )  # fmt: skip


def make_list(draw: Random) -> Question:
    """Words as bullets, as a numbered list, as a sentence or as a JSON list."""
    items = words(draw, draw.randint(2, 5)) if draw.random() < 0.7 else names(draw, draw.randint(2, 5))
    asks, result = draw.choice(
        (
            (("make a list with bullets: {s}", "write as bullet points: {s}", "as a bullet list: {s}"),
             "\n".join(f"- {item}" for item in items)),
            (("make a numbered list: {s}", "number these: {s}", "as a numbered list: {s}"),
             "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))),
            (("join these with commas and 'and': {s}", "write as part of a sentence: {s}"), listed(items)),
            (("make a JSON list: {s}", "as a JSON list: {s}", "write as JSON: {s}"), json.dumps(items)),
            (("one word a line: {s}", "write each word on a line of its own: {s}"), "\n".join(items)),
        )
    )  # fmt: skip
    key = f"list:{result}"
    return worded(draw, "formats", key, asks, "{r}", "{r}", as_is=True, s=", ".join(items), r=result)


def count_things(draw: Random) -> Question:
    """A number found by what it counts."""
    things = draw.sample(THINGS + ANIMALS, draw.randint(2, 4))
    counts = [draw.randint(2, 99) for _ in things]
    told = listed([f"{count} {plural(thing)}" for count, thing in zip(counts, things, strict=True)])
    which = draw.randrange(len(things))
    who_has = name(draw)
    asks = ("{p} has {t}. How many {x} does {p} have?", "there are {t}. How many {x} are there?",
            "in the box are {t}. How many {x}?", "how many {x} do you see here: {t}?")  # fmt: skip
    key = f"count:{told}:{things[which]}"
    return worded(
        draw, "reading", key, asks, "{n} {x}", "{n}", p=who_has, t=told, x=plural(things[which]), n=counts[which]
    )  # fmt: skip
