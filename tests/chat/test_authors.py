"""Whose each token is, for every real template of ../shared/data, none of which marks it.

The criterion knows nothing of how it is found out: the assistant's tokens, decoded, are its content as it is or
trimmed, and then exactly what ends a turn by the table below; nothing else carries loss.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from helpers_chat import byte_tokenizer, conversations
from helpers_data import SHARED, shared, shared_bytes

from whippet.chat.messages import Conversation
from whippet.chat.render import Author, Renderer
from whippet.chat.template import ChatTemplate
from whippet.chat.tokenizer import Tokenizer
from whippet.data.weigh import weigh
from whippet.errors import DataError

FOLDER = SHARED / "chat_templates" / "llama.cpp"
TOKENIZERS = ("gemma", "mistral-v0.3-instruct", "phi-3-mini", "qwen2.5", "smollm2", "zephyr")
ENDS = {
    "Cohere": "<|END_OF_TURN_TOKEN|>", "NousResearch": "<|im_end|>", "Qwen": "<|im_end|>", "qwen": "<|im_end|>",
    "smollm2": "<|im_end|>", "deepseek": "<｜end▁of▁sentence｜>", "llama-cpp": "<｜end▁of▁sentence｜>",
    "fireworks": "<|eot_id|>", "google": "<end_of_turn>", "gemma": "<end_of_turn>", "meetkai": "<|eot_id|>",
    "meta": "<|eot_id|>", "microsoft": "<|end|>", "phi": "<|end|>", "mistral": "</s>", "zephyr": "</s>",
}  # fmt: skip
"""What ends a turn, by how the template's name begins."""
MARKERS = ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_RESPONSE|>", "<|END_ACTION|>", "<|eom_id|>")
REFUSALS = ("cannot render", "fails on this", "leaves out")
TEMPLATES = (*(path.stem for path in sorted(FOLDER.glob("*.jinja"))), *TOKENIZERS)
VARIABLES = {"functions": "[]", "datetime": "2025-03-09"}


def source_of(name: str) -> str:
    if name not in TOKENIZERS:
        return shared("chat_templates", "llama.cpp", f"{name}.jinja").read_text(encoding="utf-8")
    if name == "smollm2":
        return shared("tokenizers", name, "chat_template.jinja").read_text(encoding="utf-8")
    return str(json.loads(shared_bytes("tokenizers", name, "tokenizer_config.json"))["chat_template"])


def renderer_of(name: str, folder: Path) -> tuple[Renderer, str]:
    """A token a byte, but for the markers; and what ends a turn."""
    end = next(end for beginning, end in ENDS.items() if name.startswith(beginning))
    eos = end if name.startswith("Cohere") else "</s>"
    byte_tokenizer(folder, extra=("<unk>", *MARKERS, *dict.fromkeys(one for one in ENDS.values() if one != "</s>")))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": eos}))
    template = ChatTemplate(source_of(name), name=name, bos_token="<s>", eos_token=eos, variables=VARIABLES)
    both = "<|END_RESPONSE|>" + end if "r7b" in name else end
    return Renderer(Tokenizer.load(folder), template), both


def check(renderer: Renderer, end: str, chat: Conversation, name: str) -> None:
    tokens = renderer.render(chat)
    decode = renderer.tokenizer.decode
    assert decode(tokens.ids.tolist()) == tokens.text
    ours = tokens.authors == Author.ASSISTANT
    assert (ours == (tokens.turns >= 0)).all()
    answers = [turn for turn, message in enumerate(chat.messages) if message.role == "assistant"]
    assert sorted(set(tokens.turns[ours].tolist())) == answers, "each answer is trained, and nothing else"
    for turn in answers:
        message = chat.messages[turn]
        places = np.flatnonzero(tokens.turns == turn)
        assert places[-1] - places[0] == len(places) - 1, "in one piece"
        said = decode(tokens.ids[places].tolist())
        if message.tool_calls:
            assert said.endswith(end.removeprefix("<|END_RESPONSE|>"))
            assert all(call.name in said and "Köln" in said for call in message.tool_calls)
            assert not any(
                turned in said for turned in ("<|start_header_id|>", "<|im_start|>", "[INST]", "[TOOL_RESULTS]")
            )
        else:
            shown = message.content.split("</think>")[-1] if "deepseek" in name else message.content
            assert said in {text + end for text in (shown, shown.strip(), shown.lstrip(), shown.rstrip())}
    weighed = weigh(tokens, chat, "assistant")
    assert weighed.num_trained == int(ours.sum()) > 0


@pytest.mark.parametrize("name", TEMPLATES)
def test_authors_of_real_templates(name: str, tmp_path: Path) -> None:
    renderer, end = renderer_of(name, tmp_path)
    done = 0
    for chat in conversations(random.Random(name), 300):
        try:
            check(renderer, end, chat, name)
        except DataError as error:
            odd = chat.tools and name == "CohereForAI-c4ai-command-r-plus-tool_use"  # its calls are never ended
            silent = name == "meetkai-functionary-medium-v3.2" and any(not one.content for one in chat.messages)
            assert odd or silent or any(refusal in str(error) for refusal in REFUSALS), error
            continue
        done += 1
    assert done >= 10


def test_the_criterion_can_fail(tmp_path: Path) -> None:
    renderer, end = renderer_of("zephyr", tmp_path)
    chat = next(chat for chat in conversations(random.Random(0), 10) if not chat.tools)
    check(renderer, end, chat, "zephyr")
    with pytest.raises(AssertionError):
        check(renderer, "</s>\n", chat, "zephyr")
