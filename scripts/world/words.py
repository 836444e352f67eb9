"""The words of the small world: names, places, things, animals, and made-up words for what must only be copied."""

from __future__ import annotations

from random import Random


def listing(text: str) -> list[str]:
    """The words of ``text``."""
    return text.split()


def pairs(text: str) -> dict[str, str]:
    """``dog/puppy cat/kitten`` as a table."""
    return dict(pair.split("/") for pair in listing(text))


NAMES = listing("""
Anna Ben Clara David Emma Felix Grace Henry Iris Jack Karen Leo Maria Nina Oscar Paula Quinn Rosa Sam Tina Uma Victor
Wendy Xenia Yusuf Zoe Adam Bella Carl Diana Eric Fiona George Hanna Ivan Julia Kevin Laura Max Nora Olaf Petra Ruth
Simon Tom Vera Walter Alice Boris Cora Daisy Elsa Frank Gina Hugo Ines Jonas Kim Lucy Mark Nadia Otto Peter Rita Stella
Tara Ulla Vince Wilma Amir Bruno Chloe Dario Eva Finn Greta Hector Ida Joel Kira Liam Mila Noah Olga Pablo Rocky Sara
Theo Ursula Vito Abby Buddy Coco Duke Ella Freddy Gus Holly Jasper Kate Luna Milo Nell Olive Pepper Rex Ruby Sandy
Toby Willow Ziggy Archie Bailey Casper Dexter Gizmo Hazel Jade Lola Maggie Oreo Poppy Rufus Scout Teddy Winnie
""")

CAPITALS = {
    country: city.replace("_", " ")
    for country, city in pairs("""
France/Paris Italy/Rome Spain/Madrid Germany/Berlin Portugal/Lisbon Greece/Athens Poland/Warsaw Austria/Vienna
Hungary/Budapest Norway/Oslo Sweden/Stockholm Denmark/Copenhagen Finland/Helsinki Iceland/Reykjavik Ireland/Dublin
Belgium/Brussels Russia/Moscow Ukraine/Kyiv Turkey/Ankara Egypt/Cairo Kenya/Nairobi Ghana/Accra Morocco/Rabat
Japan/Tokyo China/Beijing India/Delhi Thailand/Bangkok Vietnam/Hanoi Iran/Tehran Iraq/Baghdad Cuba/Havana Peru/Lima
Chile/Santiago Canada/Ottawa Mexico/Mexico_City Brazil/Brasilia Australia/Canberra Serbia/Belgrade Croatia/Zagreb
Bulgaria/Sofia Romania/Bucharest Estonia/Tallinn Latvia/Riga Lithuania/Vilnius Nepal/Kathmandu Jordan/Amman
Lebanon/Beirut Tunisia/Tunis Senegal/Dakar Colombia/Bogota Ecuador/Quito Uruguay/Montevideo Bolivia/Sucre
""").items()
}
CITIES = (
    *(city for city in CAPITALS.values() if " " not in city),
    *listing("London Hamburg Milan Porto Lyon Boston Geneva Naples Sydney Toronto Osaka Seville Zurich Munich Bergen"),
)

COLOURS = listing("red blue green yellow orange purple pink brown black white grey")

THINGS = listing("""
apple pear plum lemon cherry orange banana peach melon grape carrot potato onion tomato egg cake book pen pencil cup
plate spoon fork knife key coin stamp card ball kite doll drum bell lamp candle chair table box bag basket bottle hat
coat scarf glove shoe sock shirt ring button ticket map letter picture flower leaf stone shell stick rope brush towel
pillow blanket clock watch mirror radio puzzle marble ribbon balloon
""")

ANIMALS = listing("""
dog cat horse cow sheep pig goat hen duck goose rabbit mouse rat hamster fox wolf bear deer lion tiger zebra camel
monkey otter seal whale shark frog toad snake lizard turtle owl eagle crow parrot swan pigeon bee ant spider crab
""")

BREEDS = listing("""
poodle beagle terrier collie boxer pug husky spaniel mastiff dachshund bulldog greyhound whippet setter corgi pointer
labrador retriever sheepdog chihuahua
""")

JOBS = listing("""
baker teacher farmer doctor nurse painter driver pilot singer writer cook gardener tailor miller judge lawyer sailor
""")

DAYS = listing("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listing("January February March April May June July August September October November December")
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

ONES = listing("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""")
TENS = listing("twenty thirty forty fifty sixty seventy eighty ninety")

CONSONANTS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr", "gl", "sh", "ch")
VOWELS = ("a", "e", "i", "o", "u", "ai", "oo", "ea")
ENDINGS = ("", "", "", "n", "r", "l", "s", "t", "x", "ck", "nd")


def in_words(number: int) -> str:
    """0 to 99 in English words."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def made_up(draw: Random) -> str:
    """A word that does not exist, of one to three syllables: it can only be copied."""
    parts = [draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(draw.randint(1, 3))]
    return "".join(parts) + draw.choice(ENDINGS)


def name(draw: Random) -> str:
    """A person's or a pet's name; one in four is made up."""
    return made_up(draw).capitalize() if draw.random() < 0.25 else draw.choice(NAMES)


def names(draw: Random, count: int) -> list[str]:
    """Different names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[name(draw)] = None
    return list(found)


def city(draw: Random) -> str:
    """A place; one in six is made up."""
    return made_up(draw).capitalize() if draw.random() < 1 / 6 else draw.choice(CITIES)


def words(draw: Random, count: int) -> list[str]:
    """Different things and animals, a made-up word now and then."""
    found: dict[str, None] = {}
    while len(found) < count:
        kind = draw.random()
        found[made_up(draw) if kind < 0.2 else draw.choice(THINGS if kind < 0.7 else ANIMALS)] = None
    return list(found)


def plural(noun: str) -> str:
    """Of the regular nouns in ``THINGS`` and ``ANIMALS``, and the irregular ones among them."""
    irregular = {
        "mouse": "mice", "goose": "geese", "sheep": "sheep", "deer": "deer", "wolf": "wolves", "leaf": "leaves",
        "knife": "knives", "potato": "potatoes", "tomato": "tomatoes",
    }  # fmt: skip
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "sh", "ch")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
