"""The tool example of the Llama 3.3 card: ``python examples/tools.py [MODEL]``.

A Python function becomes a tool by its types and docstring. The model is asked, calls it, gets the result and answers;
the card does these steps by hand, ``converse`` is the loop. The small model that comes with whippet was never taught to
call, so the card's call is made in its place, and what it would be given next is shown.
"""

import sys

import whippet
from whippet.chat.messages import Message, ToolCall
from whippet.demo import MODEL
from whippet.infer.tool_loop import Toolbox, converse


def get_current_temperature(location: str) -> float:
    """
    Get the current temperature at a location.

    Args:
        location: The location to get the temperature for, in the format "City, Country"
    Returns:
        The current temperature at the specified location in the specified units, as a float.
    """
    return 22.0  # a real function would look


def allow(call: ToolCall) -> bool:
    """Asked before each call; ``whippet chat --tools FILE.py`` asks you."""
    print("calls", call.name, call.arguments)
    return True


model = whippet.load(sys.argv[1] if len(sys.argv) > 1 else MODEL)
tools = Toolbox([get_current_temperature])
messages = [
    Message("system", "You are a bot that responds to weather queries."),
    Message("user", "Hey, what's the temperature in Paris right now?"),
]
more = converse(model, messages, tools, allow=allow, max_new_tokens=256)
for message in more:
    print(message.as_openai())

if not any(message.tool_calls for message in more):
    call = Message("assistant", "", (ToolCall("get_current_temperature", {"location": "Paris, France"}, "call00000"),))
    messages += [call, *tools.results(call, allow)]
    print(model.tokenizer.decode(model.prompt_ids(messages, tools.schemas)))
    print(model.chat(messages, tools.schemas, max_new_tokens=256).as_openai())
