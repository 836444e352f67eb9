"""Questions about numbers: sums, differences, products, stories, units, comparing and sorting."""

from __future__ import annotations

from random import Random

from world.question import Question, worded
from world.words import ANIMALS, THINGS, names, plural

TOPIC = "arithmetic"
UNITS = (
    ("kilometres", "metres", 1000, 99), ("metres", "centimetres", 100, 99), ("centimetres", "millimetres", 10, 99),
    ("kilograms", "grams", 1000, 99), ("litres", "millilitres", 1000, 99), ("tonnes", "kilograms", 1000, 99),
    ("euros", "cents", 100, 99), ("hours", "minutes", 60, 12), ("minutes", "seconds", 60, 12),
    ("days", "hours", 24, 7), ("weeks", "days", 7, 12), ("years", "months", 12, 12), ("feet", "inches", 12, 12),
    ("dozens", "pieces", 12, 12),
)  # fmt: skip
MEMORISED = 12
"""Conversions up to this many are a table to be learnt; longer ranges are a rule."""


def _size(draw: Random) -> int:
    return draw.choice((9, 99, 99, 99, 999))


def add(draw: Random) -> Question:
    limit = _size(draw)
    return sum_of(draw, draw.randint(0, limit), draw.randint(0, limit))


def sum_of(draw: Random, a: int, b: int, asks: tuple[str, ...] | None = None) -> Question:
    """The sum of two given numbers, in the wordings ``asks`` or the usual ones."""
    usual = (
        "what is {a} + {b}?", "what is {a} plus {b}?", "{a} + {b} = ?", "add {a} and {b}.", "calculate {a} + {b}.",
        "how much is {a} plus {b}?", "work out {a} + {b}.", "find the sum of {a} and {b}.", "{a} plus {b}?",
    )  # fmt: skip
    key = f"add:{min(a, b)}:{max(a, b)}"
    return worded(draw, TOPIC, key, asks or usual, "{a} + {b} = {c}", "{c}", value=a + b, a=a, b=b, c=a + b)


def subtract(draw: Random) -> Question:
    limit = _size(draw)
    a, b = sorted((draw.randint(0, limit), draw.randint(0, limit)), reverse=True)
    return difference_of(draw, a, b)


def difference_of(draw: Random, a: int, b: int, asks: tuple[str, ...] | None = None) -> Question:
    """``a - b``, which is not negative."""
    usual = (
        "what is {a} - {b}?", "what is {a} minus {b}?", "{a} - {b} = ?", "subtract {b} from {a}.",
        "calculate {a} - {b}.", "how much is {a} minus {b}?", "work out {a} - {b}.", "take {b} away from {a}.",
        "what is the difference between {a} and {b}?",
    )  # fmt: skip
    key = f"subtract:{a}:{b}"
    return worded(draw, TOPIC, key, asks or usual, "{a} - {b} = {c}", "{c}", value=a - b, a=a, b=b, c=a - b)


def add_three(draw: Random) -> Question:
    a, b, c = (draw.randint(1, 20) for _ in range(3))
    asks = ("what is {a} + {b} + {c}?", "add {a}, {b} and {c}.", "calculate {a} + {b} + {c}.", "sum up {a}, {b}, {c}.")
    total, first = a + b + c, a + b
    answer = "{a} + {b} = {first} and {first} + {c} = {total}"
    key = f"add3:{a}:{b}:{c}"
    return worded(draw, TOPIC, key, asks, answer, "{total}", value=total, a=a, b=b, c=c, first=first, total=total)


def multiply(draw: Random) -> Question:
    a, b = draw.randint(1, 12), draw.randint(1, 12)
    asks = (
        "what is {a} times {b}?", "what is {a} x {b}?", "{a} x {b} = ?", "multiply {a} by {b}.", "calculate {a} x {b}.",
        "how much is {a} times {b}?", "what is the product of {a} and {b}?", "work out {a} times {b}.",
    )  # fmt: skip
    key = f"multiply:{a}:{b}"
    return worded(draw, TOPIC, key, asks, "{a} x {b} = {c}", "{c}", closed=True, value=a * b, a=a, b=b, c=a * b)


def divide(draw: Random) -> Question:
    b, c = draw.randint(2, 12), draw.randint(1, 12)
    asks = (
        "what is {a} divided by {b}?", "what is {a} / {b}?", "{a} / {b} = ?", "divide {a} by {b}.",
        "calculate {a} / {b}.", "how much is {a} divided by {b}?", "how many times does {b} go into {a}?",
    )  # fmt: skip
    key = f"divide:{b * c}:{b}"
    return worded(draw, TOPIC, key, asks, "{a} / {b} = {c}", "{c}", closed=True, value=c, a=b * c, b=b, c=c)


def double_or_half(draw: Random) -> Question:
    number = draw.randint(1, 99)
    if draw.random() < 0.5:
        asks = ("double {n}.", "what is twice {n}?", "what is the double of {n}?", "what is two times {n}?")
        return worded(
            draw, TOPIC, f"add:{number}:{number}", asks, "twice {n} is {c}", "{c}", n=number, c=2 * number,
            value=2 * number,
        )  # fmt: skip
    asks = ("halve {n}.", "what is half of {n}?", "what is one half of {n}?", "divide {n} by two.")
    key = f"halve:{2 * number}"
    return worded(draw, TOPIC, key, asks, "half of {n} is {c}", "{c}", n=2 * number, c=number, value=number)


GAIN = (
    "{p} has {a} {t} and buys {b} more. How many {t} does {p} have now?",
    "{p} has {a} {t}. {q} gives {p} {b} more. How many {t} does {p} have?",
    "there are {a} {t} in the box. {p} puts in {b} more. How many {t} are in the box?",
    "{p} has {a} {t} and {q} has {b} {t}. How many {t} do they have together?",
    "{p} found {a} {t} on Monday and {b} on Tuesday. How many {t} did {p} find?",
    "on the table lie {a} {t}, and {p} brings {b} more. How many {t} is that?",
)
LOSS = (
    "{p} has {a} {t} and gives {b} to {q}. How many {t} does {p} have left?",
    "{p} had {a} {t} and lost {b}. How many {t} are left?",
    "there are {a} {t} in the box. {p} takes out {b}. How many {t} are left?",
    "{p} has {a} {t} and {q} has {b} {t}. How many more {t} does {p} have than {q}?",
    "a shop has {a} {t} and sells {b}. How many {t} are left?",
    "{p} bought {a} {t} and used {b} of them. How many {t} remain?",
)
GROUPS = (
    "{p} has {a} bags with {b} {t} in each. How many {t} does {p} have?",
    "there are {a} boxes. Each box holds {b} {t}. How many {t} are there?",
    "{a} children have {b} {t} each. How many {t} do they have together?",
    "{p} buys {b} {t} a day for {a} days. How many {t} does {p} buy?",
)


def story(draw: Random) -> Question:
    """A short story about things that come together, go away or lie in equal groups."""
    kind = draw.choice(("gain", "loss", "groups"))
    person, other = names(draw, 2)
    things = plural(draw.choice(THINGS + ANIMALS))
    if kind == "groups":
        a, b = draw.randint(2, 12), draw.randint(2, 12)
        asks, sign, total, key = GROUPS, "x", a * b, f"story:{a}:{b}"
    else:
        limit = draw.choice((20, 99))
        a, b = sorted((draw.randint(1, limit), draw.randint(1, limit)), reverse=True)
        if kind == "gain":
            asks, sign, total, key = GAIN, "+", a + b, f"add:{b}:{a}"
        else:
            asks, sign, total, key = LOSS, "-", a - b, f"subtract:{a}:{b}"
    return worded(
        draw, TOPIC, key, asks, "{a} {sign} {b} = {c}, so the answer is {c} {t}", "{c}", closed=kind == "groups",
        value=total, a=a, b=b, c=total, sign=sign, t=things, p=person, q=other,
    )  # fmt: skip


def units(draw: Random) -> Question:
    big, small, factor, most = draw.choice(UNITS)
    n = draw.randint(2, most)
    source, target, amount, result = big, small, n, n * factor
    if draw.random() < 0.35:
        source, target, amount, result = small, big, n * factor, n
    asks = (
        "how many {target} are {amount} {source}?", "convert {amount} {source} to {target}.",
        "{amount} {source} in {target}?", "what are {amount} {source} in {target}?", 
        "turn {amount} {source} into {target}.",
        "how many {target} make {amount} {source}?", "change {amount} {source} to {target}.",
        "write {amount} {source} in {target}.",
    )  # fmt: skip
    answer, closed = "{amount} {source} are {result} {target}", most <= MEMORISED
    key = f"{amount}:{source}:{target}"
    return worded(
        draw, "units", key, asks, answer, "{result}", closed=closed, amount=amount, source=source, target=target,
        result=result,
    )  # fmt: skip


def greater(draw: Random) -> Question:
    a, b = draw.sample(range(draw.choice((100, 100, 1000))), 2)
    bigger = draw.random() < 0.5
    word = draw.choice(("larger", "bigger", "greater") if bigger else ("smaller", "less"))
    asks = ("which is {w}, {a} or {b}?", "which number is {w}: {a} or {b}?", "{a} or {b}: which is {w}?",
            "what is {w}, {a} or {b}?")  # fmt: skip
    won, lost = (max(a, b), min(a, b)) if bigger else (min(a, b), max(a, b))
    key = f"two:{min(a, b)}:{max(a, b)}"
    return worded(draw, "comparing", key, asks, "{x} is {w} than {y}", "{x}", w=word, a=a, b=b, x=won, y=lost)


def is_greater(draw: Random) -> Question:
    a, b = draw.sample(range(draw.choice((100, 100, 1000))), 2)
    bigger = draw.random() < 0.5
    asks = ("is {a} {w} than {b}?", "is it true that {a} is {w} than {b}?", "{a} is {w} than {b}: right or wrong?")
    true = (a > b) == bigger
    word, other = ("larger", "smaller") if bigger else ("smaller", "larger")
    key = f"two:{min(a, b)}:{max(a, b)}"
    wording = draw.choice(asks)
    yes, no = ("right", "wrong") if wording.endswith("wrong?") else ("yes", "no")
    answer = f"{yes}, {{a}} is {{w}} than {{b}}" if true else f"{no}, {{a}} is {{o}} than {{b}}"
    brief = (yes if true else no).capitalize()
    return worded(draw, "comparing", key, (wording,), answer, brief, a=a, b=b, w=word, o=other)


def extreme(draw: Random) -> Question:
    numbers = draw.sample(range(draw.choice((100, 100, 1000))), draw.randint(3, 5))
    word, pick = draw.choice((("largest", max), ("biggest", max), ("smallest", min)))
    shown = ", ".join(map(str, numbers))
    asks = ("which is the {w} of {s}?", "find the {w} number: {s}", "what is the {w} number in {s}?",
            "the {w} of these numbers, please: {s}")  # fmt: skip
    key = f"many:{':'.join(map(str, sorted(numbers)))}"
    return worded(draw, "comparing", key, asks, "the {w} number is {x}", "{x}", w=word, s=shown, x=pick(numbers))


def even_or_odd(draw: Random) -> Question:
    number = draw.randint(0, 999)
    asks = (
        "is {n} even or odd?",
        "even or odd: {n}?",
        "tell me if {n} is even or odd.",
        "is the number {n} odd or even?",
    )
    answer = "even" if number % 2 == 0 else "odd"
    return worded(draw, "comparing", f"even:{number}", asks, "{n} is {x}", "{x}", n=number, x=answer)


def older(draw: Random) -> Question:
    (p, q), (a, b) = names(draw, 2), draw.sample(range(2, 99), 2)
    word = draw.choice(("older", "younger"))
    won = p if (a > b) == (word == "older") else q
    asks = ("{p} is {a} years old and {q} is {b}. Who is {w}?", "who is {w}: {p} ({a}) or {q} ({b})?",
            "{p} is {a}, {q} is {b}. Which of them is {w}?")  # fmt: skip
    key = f"two:{min(a, b)}:{max(a, b)}"
    return worded(draw, "comparing", key, asks, "{x} is {w}", "{x}", p=p, q=q, a=a, b=b, w=word, x=won)


def sort_numbers(draw: Random) -> Question:
    numbers = draw.sample(range(draw.choice((10, 100, 100, 1000))), draw.randint(3, 5))
    down = draw.random() < 0.35
    asks = (
        ("sort from largest to smallest: {s}", "put in falling order: {s}", "order these numbers, largest first: {s}")
        if down
        else ("sort these numbers: {s}", "put these numbers in order: {s}", "sort from smallest to largest: {s}",
              "order these numbers, smallest first: {s}", "arrange in rising order: {s}")
    )  # fmt: skip
    result = ", ".join(map(str, sorted(numbers, reverse=down)))
    key = f"{'down' if down else 'up'}:{':'.join(map(str, sorted(numbers)))}"
    return worded(draw, "sorting", key, asks, "{r}", "{r}", s=", ".join(map(str, numbers)), r=result)


def sort_words(draw: Random) -> Question:
    chosen = draw.sample(THINGS[:36] + ANIMALS[:24], draw.randint(3, 4))
    asks = ("sort these words: {s}", "put in alphabetical order: {s}", "sort alphabetically: {s}",
            "order these words from a to z: {s}", "arrange by the alphabet: {s}")  # fmt: skip
    result = ", ".join(sorted(chosen))
    key = f"words:{':'.join(sorted(chosen))}"
    return worded(draw, "sorting", key, asks, "{r}", "{r}", as_is=True, s=", ".join(chosen), r=result)
