"""The first example of the Llama 3.3 card, a chat with a system message: ``python examples/pipeline.py [MODEL]``.

MODEL is a checkpoint's folder, a hub id or a run; without one it is the small model that comes with whippet, which
knows its name and no pirates.
"""

import sys

import whippet
from whippet.demo import MODEL

model = whippet.load(sys.argv[1] if len(sys.argv) > 1 else MODEL)
messages = [
    {"role": "system", "content": "You are a pirate chatbot who always responds in pirate speak!"},
    {"role": "user", "content": "Who are you?"},
]
reply = model.chat(messages, max_new_tokens=256)
print(reply.as_openai())
