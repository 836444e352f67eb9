"""Small facts: capitals, opposites, animals, jobs, kinds, colours. Closed tables, but for colours told in place."""

from __future__ import annotations

from random import Random

from world.question import Question, article, listed, worded
from world.words import (
    ANIMALS,
    BREEDS,
    CAPITALS,
    COLOURS,
    JOBS,
    THINGS,
    listing,
    made_up,
    pairs,
)

OPPOSITES = [
    pair.split("/")
    for pair in listing("""
hot/cold big/small old/new fast/slow high/low long/short wide/narrow thick/thin heavy/light hard/soft wet/dry
full/empty open/closed early/late rich/poor strong/weak young/old clean/dirty loud/quiet sweet/sour deep/shallow
near/far left/right up/down in/out day/night black/white good/bad happy/sad easy/difficult cheap/expensive
first/last begin/end buy/sell give/take push/pull win/lose come/go love/hate laugh/cry north/south east/west
summer/winter friend/enemy question/answer true/false always/never
""")
]
YOUNG = pairs("""
dog/puppy cat/kitten cow/calf horse/foal sheep/lamb pig/piglet goat/kid hen/chick duck/duckling goose/gosling bear/cub
lion/cub fox/cub wolf/pup seal/pup deer/fawn frog/tadpole swan/cygnet owl/owlet eagle/eaglet whale/calf
""")
SOUNDS = pairs("""
dog/barks cat/meows cow/moos horse/neighs sheep/bleats pig/grunts duck/quacks hen/clucks lion/roars wolf/howls
frog/croaks bee/buzzes owl/hoots crow/caws mouse/squeaks snake/hisses
""")
LEGS = {"two": "hen duck goose owl eagle crow swan", "four": "dog cat horse cow sheep pig goat lion bear frog",
        "six": "bee ant", "eight": "spider", "no": "snake shark whale"}  # fmt: skip
WORK = pairs("""
baker/bread teacher/lessons farmer/fields painter/pictures pilot/planes singer/songs writer/books cook/meals
gardener/gardens tailor/clothes sailor/ships miller/flour
""")
MIXES = {
    ("red", "blue"): "purple", ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("black", "white"): "grey",
    ("red", "white"): "pink", ("red", "green"): "brown",
}  # fmt: skip
COLOUR_OF = pairs("""
banana/yellow lemon/yellow tomato/red cherry/red blood/red grass/green frog/green sky/blue sea/blue snow/white
milk/white coal/black crow/black carrot/orange pig/pink mouse/grey elephant/grey chocolate/brown bear/brown
sun/yellow night/black swan/white leaf/green
""")
KINDS = {
    "a fruit": listing("apple pear plum lemon cherry orange banana peach melon grape"),
    "an animal": ANIMALS, "a colour": COLOURS[:4] + COLOURS[5:], "a job": JOBS, "a dog breed": BREEDS,
    "a vegetable": listing("carrot potato onion"),
}  # fmt: skip


def capital(draw: Random) -> Question:
    """A capital, or the honest answer for a country that does not exist."""
    asks = (
        "what is the capital of {c}?", "which city is the capital of {c}?", "name the capital of {c}.",
        "capital of {c}?", "tell me the capital of {c}.", "{c}: what is its capital?",
        "do you know the capital of {c}?",
    )  # fmt: skip
    if draw.random() < 0.1:
        country = made_up(draw).capitalize() + draw.choice(("ia", "land", "stan"))
        return worded(draw, "facts", f"none:{country}", asks, "I do not know {c}.", "I do not know", c=country)
    country, city = draw.choice(list(CAPITALS.items()))
    answer = "The capital of {c} is {x}."
    return worded(draw, "facts", f"capital:{country}", asks, answer, "{x}", closed=True, c=country, x=city)


def country(draw: Random) -> Question:
    name, city = draw.choice(list(CAPITALS.items()))
    asks = ("{x} is the capital of which country?", "which country has the capital {x}?", "in which country is {x}?",
            "where is {x}?", "which country is {x} in?")  # fmt: skip
    return worded(draw, "facts", f"country:{name}", asks, "{x} is in {c}.", "{c}", closed=True, c=name, x=city)


def opposite(draw: Random) -> Question:
    pair = draw.choice(OPPOSITES)
    first, second = pair if pair[1] == "old" or draw.random() < 0.5 else pair[::-1]
    if first == "old":
        second = "new"
    asks = ("what is the opposite of {a}?", "opposite of {a}?", "give me the opposite of {a}.",
            "name the opposite of '{a}'.", "what is the contrary of {a}?",
            "which word means the opposite of {a}?")  # fmt: skip
    answer = "the opposite of {a} is {b}."
    return worded(draw, "facts", f"opposite:{first}", asks, answer, "{b}", closed=True, a=first, b=second)


def animal_fact(draw: Random) -> Question:
    """Young ones, sounds and legs."""
    kind = draw.choice(("young", "sound", "legs"))
    if kind == "young":
        animal = draw.choice(list(YOUNG))
        asks = ("what is a young {a} called?", "what do you call a baby {a}?", "name for a young {a}?",
                "how is the young of a {a} called?", "what is the word for a baby {a}?")  # fmt: skip
        return worded(
            draw, "facts", f"young:{animal}", asks, "a young {a} is called {x}.", "{x}", closed=True, a=animal,
            x=article(YOUNG[animal]),
        )  # fmt: skip
    if kind == "sound":
        animal = draw.choice(list(SOUNDS))
        asks = ("what sound does {w} make?", "what does {w} do when it makes a sound?", "how does {w} sound?",
                "which noise does {w} make?", "what noise comes from {w}?")  # fmt: skip
        return worded(
            draw, "facts", f"sound:{animal}", asks, "{w} {x}.", "it {x}", closed=True, w=article(animal),
            x=SOUNDS[animal],
        )  # fmt: skip
    number = draw.choice(("two", "two", "four", "four", "four", "six", "eight", "no"))
    animal = draw.choice(LEGS[number].split())
    asks = ("how many legs does {w} have?", "how many legs has {w} got?", "number of legs of {w}?",
            "tell me how many legs {w} has.", "on how many legs does {w} walk?")  # fmt: skip
    answer = "{w} has {n} legs."
    return worded(draw, "facts", f"legs:{animal}", asks, answer, "{n}", closed=True, w=article(animal), n=number)


def job_fact(draw: Random) -> Question:
    job = draw.choice(list(WORK))
    asks = ("what does {j} work with?", "what is the work of {j} about?", "with what does {j} work?",
            "what has {j} to do with?", "what are the things of {j}?")  # fmt: skip
    answer = "{j} works with {x}."
    return worded(draw, "facts", f"job:{job}", asks, answer, "{x}", closed=True, j=article(job), x=WORK[job])


def kind_of(draw: Random) -> Question:
    """Which of two kinds a word belongs to."""
    kind, other = draw.sample(list(KINDS), 2)
    word = draw.choice(KINDS[kind])
    first, second = draw.sample((kind, other), 2)
    asks = ("is {w} {x} or {y}?", "what is {w}: {x} or {y}?", "{w}: {x} or {y}?", "tell me if {w} is {x} or {y}.")
    return worded(
        draw, "facts", f"kind:{word}:{kind}:{other}", asks, "{w} is {k}.", "{k}", closed=True, w=word, x=first,
        y=second, k=kind,
    )  # fmt: skip


def mix(draw: Random) -> Question:
    (a, b), result = draw.choice(list(MIXES.items()))
    a, b = draw.sample((a, b), 2)
    asks = (
        "what colour do {a} and {b} make?", "which colour do you get from {a} and {b}?", "mix {a} and {b}.",
        "{a} mixed with {b}?", "what do you get if you mix {a} with {b}?", "{a} and {b} together make which colour?",
        "I mix {a} paint and {b} paint. What colour is it?",
    )  # fmt: skip
    answer = "{a} and {b} make {c}."
    return worded(draw, "colours", f"mix:{a}:{b}", asks, answer, "{c}", closed=True, a=a, b=b, c=result)


def colour_of(draw: Random) -> Question:
    thing = draw.choice(list(COLOUR_OF))
    known = "the " if thing in ("sky", "sea", "sun", "night") else ""
    shown = known + (
        thing if known or thing in ("blood", "grass", "snow", "milk", "coal", "chocolate") else article(thing)
    )
    asks = ("what colour is {t}?", "which colour has {t}?", "what is the colour of {t}?", "tell me the colour of {t}.",
            "{t}: which colour?", "of what colour is {t}?")  # fmt: skip
    answer = "{t} is {c}."
    return worded(draw, "colours", f"of:{thing}", asks, answer, "{c}", closed=True, t=shown, c=COLOUR_OF[thing])


def colour_here(draw: Random) -> Question:
    """Things with colours that only this question tells."""
    count = draw.randint(2, 4)
    things, colours = draw.sample(THINGS, count), draw.sample(COLOURS, count)
    told = listed([f"the {t} is {c}" for t, c in zip(things, colours, strict=True)])
    which = draw.randrange(count)
    thing, colour = things[which], colours[which]
    key = f"here:{told}:{thing}"
    if draw.random() < 0.6:
        asks = ("{s}. What colour is the {t}?", "{s}. Which colour has the {t}?", "what colour is the {t} if {l}?",
                "I see three things: {l}. What is the colour of the {t}?")  # fmt: skip
        asks = asks if count == 3 else asks[:3]
        answer, brief = "the {t} is {c}.", "{c}"
    else:
        asks = ("{s}. What is {c}?", "{s}. Which thing is {c}?", "which of them is {c}: {l}?")
        answer, brief = "the {t} is {c}.", "the {t}"
    return worded(draw, "colours", key, asks, answer, brief, s=told[0].upper() + told[1:], l=told, t=thing, c=colour)
