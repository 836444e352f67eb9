"""Greetings, thanks, goodbyes and what the model says of itself."""

from __future__ import annotations

from random import Random

from world.question import Question, sentence
from world.words import name

GREETINGS = ("hi", "hello", "hey", "good morning", "good evening", "good day", "hello there", "hi there")
TONES = ("", ".", "!", ", whippet", ", whippet!", ", my friend", " again")
SELF = (
    (("who are you?", "what is your name?", "what are you?", "what are you called?", "tell me who you are.",
      "introduce yourself."), "I am Whippet, a small and quick language model."),
    (("what can you do?", "what do you know?", "how can you help me?", "what are you good at?", "what can I ask you?"),
     "I can calculate, sort, convert units, find things in a text and answer small questions."),
    (("how are you?", "how do you do?", "are you well?", "how are you today?"), "I am well, thank you."),
    (("are you a person?", "are you human?", "are you a real dog?", "are you alive?"),
     "No, I am a small language model."),
    (("how big are you?", "are you a large model?", "how many parameters do you have?"),
     "I am small: fewer than four million parameters."),
)  # fmt: skip
THANKS = ("thanks", "thank you", "thanks a lot", "thank you very much", "many thanks", "great, thanks", "that helped")
PARTINGS = ("bye", "goodbye", "see you", "see you later", "good night", "bye for now", "until tomorrow")


def talk(draw: Random) -> Question:
    """A question that is held out by its wording."""
    kind = draw.choice(("greeting", "self", "self", "thanks", "parting", "name"))
    if kind == "greeting":
        ask, answer = draw.choice(GREETINGS) + draw.choice(TONES), "Hello! How can I help you?"
    elif kind == "self":
        asks, answer = draw.choice(SELF)
        opening = draw.choice(
            ("", "", f"{draw.choice(GREETINGS)}, ", f"{draw.choice(GREETINGS)}! ", "so, ", "please, ")
        )
        ask = opening + draw.choice(asks)
    elif kind == "thanks":
        ask, answer = draw.choice(THANKS) + draw.choice(TONES), "You are welcome."
    elif kind == "parting":
        ask, answer = draw.choice(PARTINGS) + draw.choice(TONES), "Goodbye!"
    else:
        called = name(draw)
        ask = draw.choice(
            ("my name is {n}.", "I am {n}.", "I am called {n}.", "hello, I am {n}.", "hi, my name is {n}.")
        )
        ask, answer = ask.format(n=called), f"Nice to meet you, {called}!"
    return Question("talk", ask, sentence(ask), answer, answer)
