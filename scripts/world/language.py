"""Questions about words: plurals, past tense, numbers in words, letters and lists."""

from __future__ import annotations

from random import Random

from world.question import Question, worded
from world.words import (
    ANIMALS,
    COLOURS,
    JOBS,
    THINGS,
    in_words,
    names,
    pairs,
    plural,
    words,
)

PAST = pairs("""
go/went see/saw eat/ate drink/drank run/ran swim/swam sing/sang write/wrote read/read take/took give/gave come/came
know/knew think/thought buy/bought bring/brought catch/caught teach/taught find/found make/made say/said tell/told
sell/sold stand/stood sit/sat sleep/slept keep/kept leave/left feel/felt meet/met fly/flew grow/grew throw/threw
draw/drew speak/spoke break/broke steal/stole drive/drove ride/rode begin/began win/won lose/lost send/sent
build/built walk/walked play/played jump/jumped help/helped look/looked ask/asked cook/cooked paint/painted
""")
SPELLED = [word for word in dict.fromkeys(THINGS + ANIMALS + COLOURS) if 3 <= len(word) <= 6]
SMALL_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def plural_of(draw: Random) -> Question:
    noun = draw.choice(THINGS + ANIMALS + JOBS)
    asks = ("what is the plural of {a}?", "plural of {a}?", "write {a} in the plural.", "one {a}, many ...?",
            "one {a}, two what?", "what do you say for more than one {a}?")  # fmt: skip
    answer = "the plural of {a} is {b}."
    return worded(draw, "grammar", f"plural:{noun}", asks, answer, "{b}", closed=True, a=noun, b=plural(noun))


def past_of(draw: Random) -> Question:
    verb = draw.choice(list(PAST))
    asks = ("what is the past tense of {a}?", "past tense of {a}?", "put '{a}' into the past.",
            "today I {a}, yesterday I ...?", "what is the past form of {a}?",
            "write {a} in the past tense.")  # fmt: skip
    answer = "the past tense of {a} is {b}."
    return worded(draw, "grammar", f"past:{verb}", asks, answer, "{b}", closed=True, a=verb, b=PAST[verb])


def number_words(draw: Random) -> Question:
    """Numbers to words and back."""
    number = draw.randrange(100)
    spelled = in_words(number)
    if draw.random() < 0.5:
        asks = ("write {n} in words.", "how do you spell the number {n}?", "{n} in words?", "say {n} as a word.",
                "what is {n} in words?", "turn the number {n} into words.")  # fmt: skip
        return worded(
            draw, "grammar", f"words:{number}", asks, "{w}", "{w}", closed=True, as_is=True, n=number, w=spelled
        )
    asks = ("write {w} as a number.", "{w} in digits?", "what is {w} in digits?", "turn {w} into digits.",
            "which number is {w}?", "write {w} with digits.")  # fmt: skip
    return worded(draw, "grammar", f"digits:{number}", asks, "{n}", "{n}", closed=True, n=number, w=spelled)


def letters(draw: Random) -> Question:
    """First and last letter, spelling, length, backwards and capitals of a short word."""
    word = draw.choice(SPELLED)
    asks, answer, brief = draw.choice(
        (
            (("what is the first letter of {w}?", "first letter of {w}?", "which letter does {w} begin with?",
              "with which letter does {w} start?"), "the first letter of {w} is {f}.", "{f}"),
            (("what is the last letter of {w}?", "last letter of {w}?", "which letter does {w} end with?",
              "with which letter does {w} end?"), "the last letter of {w} is {e}.", "{e}"),
            (("spell {w}.", "how do you spell {w}?", "spell the word {w}.", "write {w} letter by letter."),
             "{s}", "{s}"),
            (("how many letters has {w}?", "how many letters are in {w}?", "count the letters of {w}.",
              "number of letters in {w}?"), "{s}: {n} letters", "{n}"),
            (("write {w} backwards.", "reverse the word {w}.", "what is {w} backwards?", "spell {w} backwards."),
             "{r}", "{r}"),
            (("write {w} in capitals.", "{w} in capital letters?", "put {w} in upper case.", "shout {w}!"),
             "{u}", "{u}"),
        )
    )  # fmt: skip
    spelled = "-".join(word)
    return worded(
        draw, "letters", f"{answer}:{word}", asks, answer, brief, closed=True, as_is="{w}" not in answer, w=word,
        f=word[0], e=word[-1], s=spelled, n=len(word), r="-".join(reversed(word)), u=word.upper(),
    )  # fmt: skip


def next_letter(draw: Random) -> Question:
    number = draw.randrange(25)
    first, second = (chr(ord("a") + number + step) for step in (0, 1))
    if draw.random() < 0.5:
        asks = ("which letter comes after {a}?", "what comes after the letter {a}?", "what letter follows {a}?",
                "the letter after {a}?")  # fmt: skip
        answer = "after {a} comes {b}."
    else:
        asks = ("which letter comes before {a}?", "what comes before the letter {a}?", "the letter before {a}?",
                "which letter is just before {a}?")  # fmt: skip
        answer, first, second = "before {a} comes {b}.", second, first
    return worded(draw, "letters", f"{answer}:{first}", asks, answer, "{b}", closed=True, a=first, b=second)


def word_list(draw: Random) -> Question:
    """Counting, picking from and reversing a list of words."""
    items = words(draw, draw.randint(2, 5)) if draw.random() < 0.8 else names(draw, draw.randint(2, 5))
    place = draw.randrange(min(3, len(items)))
    asks, answer, brief = draw.choice(
        (
            (("how many words are in this list: {s}", "count these words: {s}", "how many things do I name: {s}"),
             "there are {n}.", "{n}"),
            (("say these words backwards: {s}", "reverse this list: {s}", "turn this list around: {s}",
              "give me these in reverse order: {s}"), "{r}", "{r}"),
            (("what is the first word of this list: {s}", "first of these: {s}", "which word comes first: {s}"),
             "{f}", "{f}"),
            (("what is the last word of this list: {s}", "last of these: {s}", "which word comes last: {s}"),
             "{e}", "{e}"),
            (("which is the {o} word: {s}", "the {o} word of this list: {s}", "name the {o} of these: {s}"),
             "{p}", "{p}"),
        )
    )  # fmt: skip
    order = ("first", "second", "third")[place]
    return worded(
        draw, "lists", f"{answer}:{order}:{':'.join(items)}", asks, answer, brief, as_is=not answer.startswith("there"),
        s=", ".join(items), r=", ".join(reversed(items)), n=SMALL_WORDS[len(items)], f=items[0], e=items[-1],
        o=order, p=items[place],
    )  # fmt: skip
