"""Questions about days, months, dates and the clock."""

from __future__ import annotations

from random import Random

from world.question import Question, worded
from world.words import DAYS, MONTH_DAYS, MONTHS

TOPIC = "dates"


def day_shift(draw: Random) -> Question:
    """The weekday some days before or after another."""
    start, n = draw.randrange(7), draw.randint(1, 10)
    after = draw.random() < 0.6
    if n == 1:
        asks = (
            ("what day comes after {d}?", "which day follows {d}?", "today is {d}. What day is tomorrow?",
             "which day is it the day after {d}?")
            if after
            else ("what day comes before {d}?", "today is {d}. What day was yesterday?",
                  "which day is just before {d}?", "which day is it the day before {d}?")
        )  # fmt: skip
    else:
        asks = (
            ("what day is {n} days after {d}?", "today is {d}. What day is it in {n} days?", "{d} plus {n} days?",
             "which weekday comes {n} days after {d}?", "it is {d}. Which day will it be {n} days from now?")
            if after
            else ("what day is {n} days before {d}?", "today is {d}. What day was it {n} days ago?",
                  "{d} minus {n} days?", "which weekday comes {n} days before {d}?")
        )  # fmt: skip
    result = DAYS[(start + (n if after else -n)) % 7]
    key = f"day:{'+' if after else '-'}{n}:{DAYS[start]}"
    return worded(draw, TOPIC, key, asks, "it is {r}.", "{r}", closed=True, d=DAYS[start], n=n, r=result)


def month_shift(draw: Random) -> Question:
    start, n = draw.randrange(12), draw.randint(1, 6)
    after = draw.random() < 0.6
    where = "after" if after else "before"
    asks = ("what month comes {s} {w} {m}?", "which month is {s} {w} {m}?", "which month is it {s} {w} {m}?",
            "name the month that is {s} {w} {m}.")  # fmt: skip
    result = MONTHS[(start + (n if after else -n)) % 12]
    shift = "one month" if n == 1 else f"{n} months"
    key = f"month:{where}:{n}:{MONTHS[start]}"
    return worded(draw, TOPIC, key, asks, "it is {r}.", "{r}", closed=True, s=shift, w=where, m=MONTHS[start], r=result)


def month_fact(draw: Random) -> Question:
    """How many days a month has, or its place in the year."""
    month = draw.randrange(12)
    kind = draw.choice(("days", "number", "name"))
    if kind == "days":
        asks = ("how many days does {m} have?", "how many days are in {m}?", "how long is {m}?",
                "number of days in {m}?", "days in {m}?")  # fmt: skip
        answer, brief = "{m} has {n} days.", "{n}"
        number = MONTH_DAYS[month]
    elif kind == "number":
        asks = ("which number is the month {m}?", "what is the number of {m} in the year?", 
                "the month {m} as a number?", "write {m} as a number.", "which month of the year is {m}?")  # fmt: skip
        answer, brief, number = "{m} is month {n}.", "{n}", month + 1
    else:
        asks = ("what is month {n} called?", "which month has the number {n}?", "name month {n} of the year.",
                "what is the name of month {n}?", "write month {n} in words.")  # fmt: skip
        answer, brief, number = "month {n} is {m}.", "{m}", month + 1
    key = f"{kind}:{MONTHS[month]}"
    return worded(draw, TOPIC, key, asks, answer, brief, closed=True, m=MONTHS[month], n=number)


def date_shift(draw: Random) -> Question:
    """The date some days after another, over a month's end if need be. February is left out: years differ."""
    month = draw.choice([m for m in range(12) if m != 1])
    day, n = draw.randint(1, MONTH_DAYS[month]), draw.randint(2, 20)
    over = day + n > MONTH_DAYS[month]
    if over and month == 0:
        day = draw.randint(1, 11)
        over = False
    result = (day + n - MONTH_DAYS[month], MONTHS[(month + 1) % 12]) if over else (day + n, MONTHS[month])
    asks = ("what date is {n} days after {d} {m}?", "it is {d} {m}. What is the date in {n} days?",
            "{d} {m} plus {n} days?", "which date comes {n} days after {d} {m}?", 
            "add {n} days to {d} {m}.")  # fmt: skip
    key = f"date:{MONTHS[month]}:{day}:{n}"
    return worded(
        draw, TOPIC, key, asks, "{n} days after {d} {m} is {r}.", "{r}", n=n, d=day, m=MONTHS[month],
        r=f"{result[0]} {result[1]}",
    )  # fmt: skip


def days_between(draw: Random) -> Question:
    month = draw.randrange(12)
    first, last = sorted(draw.sample(range(1, MONTH_DAYS[month] + 1), 2))
    asks = ("how many days are there from {a} {m} to {b} {m}?", "how many days pass between {a} {m} and {b} {m}?",
            "days from {a} {m} to {b} {m}?")  # fmt: skip
    n = last - first
    key = f"between:{MONTHS[month]}:{first}:{last}"
    answer = "from {a} {m} to {b} {m} is one day." if n == 1 else "from {a} {m} to {b} {m} are {n} days."
    return worded(draw, TOPIC, key, asks, answer, "{n}", a=first, b=last, m=MONTHS[month], n=n)


def clock(draw: Random) -> Question:
    """The time some minutes after another, in steps of five minutes on a clock of 24 hours."""
    hour, minute, n = draw.randint(0, 22), draw.randrange(0, 60, 5), draw.randrange(5, 60, 5)
    asks = ("what time is it {n} minutes after {t}?", "it is {t}. What time is it in {n} minutes?",
            "{t} plus {n} minutes?", "add {n} minutes to {t}.")  # fmt: skip
    over, rest = divmod(minute + n, 60)
    key = f"clock:{hour}:{minute}:{n}"
    start, end = f"{hour}:{minute:02d}", f"{hour + over}:{rest:02d}"
    return worded(draw, TOPIC, key, asks, "{n} minutes after {t} is {r}.", "{r}", n=n, t=start, r=end)
