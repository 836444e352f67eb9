"""Questions that a function is to answer: the schemas, the calls, what comes back and what is said then."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from world.question import Question
from world.words import DAYS, THINGS, city, name, words

KINDS_OF_WEATHER = ("sunny", "rainy", "cloudy", "windy", "snowy", "foggy")
SONGS = (
    "blue moon",
    "old river",
    "red door",
    "green hills",
    "little star",
    "winter song",
    "morning light",
    "last train",
)


def schema(name: str, purpose: str, /, **arguments: tuple[str, str]) -> dict[str, Any]:
    """A function in OpenAI's form; ``arguments`` maps each name to its type and description."""
    properties = {key: {"type": kind, "description": text} for key, (kind, text) in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": purpose, "parameters": parameters}}


SCHEMAS = {
    tool["function"]["name"]: tool
    for tool in (
        schema("get_weather", "The weather in a city", city=("string", "The city")),
        schema("get_population", "How many people live in a city", city=("string", "The city")),
        schema("set_timer", "Start a timer", minutes=("integer", "Length in minutes")),
        schema("set_alarm", "Set an alarm", hour=("integer", "Hour"), minute=("integer", "Minute")),
        schema("send_message", "Send a message", to=("string", "To whom"), text=("string", "The text")),
        schema("add_event", "Add to the calendar", title=("string", "What"), day=("string", "The weekday")),
        schema("play_song", "Play a song", title=("string", "The title")),
        schema("get_price", "The price of a thing", item=("string", "The thing")),
        schema("add_to_list", "Add to the shopping list", item=("string", "The thing"), count=("integer", "How many")),
        schema("get_age", "The age of a person", name=("string", "The name")),
    )
}
Made = tuple[tuple[str, ...], dict[str, Any], str, str]
"""Wordings, arguments of the call, its result, and what is said then."""


def _weather(draw: Random) -> Made:
    place, kind, degrees = city(draw), draw.choice(KINDS_OF_WEATHER), draw.randint(0, 35)
    asks = (f"what is the weather in {place}?", f"how is the weather in {place} today?", f"weather in {place}?",
            f"tell me the weather in {place}.")  # fmt: skip
    result = json.dumps({"weather": kind, "degrees": degrees})
    return asks, {"city": place}, result, f"It is {kind} in {place}, {degrees} degrees."


def _population(draw: Random) -> Made:
    place, people = city(draw), draw.randint(1, 999) * 1000
    asks = (f"how many people live in {place}?", f"what is the population of {place}?", f"population of {place}?")
    return asks, {"city": place}, json.dumps({"people": people}), f"{people} people live in {place}."


def _timer(draw: Random) -> Made:
    n = draw.randint(2, 90)
    asks = (f"set a timer for {n} minutes.", f"start a timer of {n} minutes.", f"wake me in {n} minutes.",
            f"timer, {n} minutes, please.")  # fmt: skip
    return asks, {"minutes": n}, '{"ok": true}', f"The timer is set for {n} minutes."


def _alarm(draw: Random) -> Made:
    hour, minute = draw.randint(0, 23), draw.randint(10, 59)
    asks = (f"set an alarm for {hour}:{minute}.", f"wake me at {hour}:{minute}.", f"alarm at {hour}:{minute}, please.")
    return asks, {"hour": hour, "minute": minute}, '{"ok": true}', f"The alarm is set for {hour}:{minute}."


def _message(draw: Random) -> Made:
    to, text = (
        name(draw),
        draw.choice(("I am late", "see you soon", "happy birthday", "call me", " ".join(words(draw, 2)))),
    )
    asks = (f"send a message to {to}: {text}", f"write to {to}: {text}", f"tell {to} this: {text}",
            f"message for {to}: {text}")  # fmt: skip
    return asks, {"to": to, "text": text}, '{"ok": true}', f"I sent your message to {to}."


def _event(draw: Random) -> Made:
    title, day = (
        draw.choice(("swimming", "dinner", "football", "music", "dentist", "cinema", name(draw))),
        draw.choice(DAYS),
    )
    asks = (
        f"put {title} in my calendar for {day}.",
        f"add {title} on {day} to my calendar.",
        f"note for {day}: {title}",
    )
    return asks, {"title": title, "day": day}, '{"ok": true}', f"{title} is in your calendar for {day}."


def _song(draw: Random) -> Made:
    title = draw.choice(SONGS) if draw.random() < 0.5 else " ".join(words(draw, 2))
    asks = (f"play {title}.", f"play the song {title}.", f"I want to hear {title}.", f"put on {title}, please.")
    return asks, {"title": title}, '{"ok": true}', f"Now playing {title}."


def _price(draw: Random) -> Made:
    item, euros = words(draw, 1)[0], draw.randint(1, 99)
    asks = (f"what does the {item} cost?", f"price of the {item}?", f"how much is the {item}?",
            f"tell me the price of the {item}.")  # fmt: skip
    return asks, {"item": item}, json.dumps({"euros": euros}), f"The {item} costs {euros} euros."


def _shopping(draw: Random) -> Made:
    item, count = draw.choice(THINGS), draw.randint(2, 50)
    asks = (f"put {count} of {item} on my shopping list.", f"shopping list: {count} of {item}.",
            f"add {count} of {item} to the shopping list.")  # fmt: skip
    return asks, {"item": item, "count": count}, '{"ok": true}', f"I added {count} of {item} to the list."


def _age(draw: Random) -> Made:
    who, age = name(draw), draw.randint(1, 99)
    asks = (f"how old is {who}?", f"what is the age of {who}?", f"tell me the age of {who}.")
    return asks, {"name": who}, json.dumps({"age": age}), f"{who} is {age} years old."


MAKERS: dict[str, Callable[[Random], Made]] = {
    "get_weather": _weather, "get_population": _population, "set_timer": _timer, "set_alarm": _alarm,
    "send_message": _message, "add_event": _event, "play_song": _song, "get_price": _price,
    "add_to_list": _shopping, "get_age": _age,
}  # fmt: skip


def choose_tools(draw: Random) -> tuple[str, ...]:
    """The names of the functions that a dialogue may use."""
    return tuple(draw.sample(list(SCHEMAS), draw.randint(1, 3)))


def use(draw: Random, given: tuple[str, ...]) -> Question:
    """A question for one of the functions ``given``."""
    function = draw.choice(given)
    asks, arguments, result, answer = MAKERS[function](draw)
    ask = draw.choice(asks)
    return Question(
        topic="tools",
        key=f"{function}:{json.dumps(arguments)}",
        ask=ask[0].upper() + ask[1:],
        answer=answer[0].upper() + answer[1:],
        brief=answer[0].upper() + answer[1:],
        tools=tuple(SCHEMAS[one] for one in given),
        call=(function, arguments),
        result=result,
    )
