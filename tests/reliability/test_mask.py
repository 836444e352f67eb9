"""The loss of drawn chats is that of a loop by hand, and exactly the same tokens carry it.

The hand knows nothing of whippet: it writes the template's text in pieces, tells a token's place by its bytes, takes
logits from transformers in double precision and adds the losses up token by token.
"""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from helpers_chat import conversations, real_tokenizer
from helpers_data import shared
from helpers_infer import write_checkpoint
from helpers_models import oracle

from whippet.chat.messages import Conversation, Message
from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data.batches import IGNORED, make_batch
from whippet.data.weigh import Weighed, weigh
from whippet.errors import DataError
from whippet.model.decoder import Decoder
from whippet.options import TrainOn
from whippet.train.objectives import sft
from whippet.weights.load import load_decoder

RELATIVE = 1e-5
Piece = tuple[str, int]
"""Text, and the message of the assistant that a model must learn it from; -1 for what it need not."""


# --- the templates, by hand -----------------------------------------------------------------------------------------


def call_lines(message: Message, name: str = "arguments") -> list[str]:
    return [
        f'{{"name": "{call.name}", "{name}": {json.dumps(call.arguments, ensure_ascii=False)}}}'
        for call in message.tool_calls
    ]


def tool_lines(chat: Conversation, indent: int | None = None) -> list[str]:
    return [json.dumps(tool, ensure_ascii=False, indent=indent) for tool in chat.tools]


def split_system(chat: Conversation) -> tuple[str | None, list[tuple[int, Message]]]:
    """The first message if it is the system's; the others with their numbers."""
    turns = list(enumerate(chat.messages))
    return (turns[0][1].content, turns[1:]) if turns[0][1].role == "system" else (None, turns)


def chatml(chat: Conversation) -> Iterator[Piece]:
    yield "<s>", -1
    system, turns = split_system(chat)
    if chat.tools:
        before = f"{system}\n\n" if system is not None else ""
        intro = "These functions may be called, each described by a JSON schema:\n<tools>\n"
        listed = "".join(f"{line}\n" for line in tool_lines(chat))
        outro = 'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.'
        yield f"<|im_start|>system\n{before}{intro}{listed}</tools>\n{outro}<|im_end|>\n", -1
    elif system is not None:
        yield f"<|im_start|>system\n{system}<|im_end|>\n", -1
    for turn, message in turns:
        calls = [f"<tool_call>\n{line}\n</tool_call>" for line in call_lines(message)]
        said = "\n".join([*([message.content] if message.content or not calls else []), *calls])
        yield f"<|im_start|>{message.role}\n", -1
        yield f"{said}<|im_end|>", turn if message.role == "assistant" else -1
        yield "\n", -1


def llama_3(chat: Conversation) -> Iterator[Piece]:
    yield "<s>", -1
    system, turns = split_system(chat)
    if chat.tools:
        before = f"{system.strip()}\n\n" if system is not None else ""
        intro = "These functions may be called, each described by a JSON schema:\n"
        listed = "".join(f"{line}\n" for line in tool_lines(chat))
        outro = 'To call one, answer with {"name": ..., "parameters": {...}} and nothing else.'
        yield f"<|start_header_id|>system<|end_header_id|>\n\n{before}{intro}{listed}{outro}<|eot_id|>", -1
    elif system is not None:
        yield f"<|start_header_id|>system<|end_header_id|>\n\n{system.strip()}<|eot_id|>", -1
    for turn, message in turns:
        role = "ipython" if message.role == "tool" else message.role
        said = message.content if message.role == "tool" else message.content.strip()
        said = call_lines(message, "parameters")[0] if message.tool_calls else said
        yield f"<|start_header_id|>{role}<|end_header_id|>\n\n", -1
        yield f"{said}<|eot_id|>", turn if message.role == "assistant" else -1


def zephyr(chat: Conversation) -> Iterator[Piece]:
    yield "<s>", -1
    for turn, message in enumerate(chat.messages):
        yield f"<|{message.role}|>\n", -1
        yield f"{message.content}</s>", turn if message.role == "assistant" else -1
        yield "\n", -1


def phi_3(chat: Conversation) -> Iterator[Piece]:
    yield "<s>", -1
    for turn, message in enumerate(chat.messages):
        yield f"<|{message.role}|>\n", -1
        yield f"{message.content}<|end|>", turn if message.role == "assistant" else -1
        yield "\n", -1
    yield "</s>", -1


def gemma(chat: Conversation) -> Iterator[Piece]:
    yield "<s>", -1
    system, turns = split_system(chat)
    before = f"{system}\n\n" if system is not None else ""
    for turn, message in turns:
        ours = message.role == "assistant"
        yield f"<start_of_turn>{'model' if ours else 'user'}\n", -1
        yield f"{'' if ours else before}{message.content.strip()}<end_of_turn>", turn if ours else -1
        yield "\n", -1
        before = before if ours else ""


def mistral(chat: Conversation) -> Iterator[Piece]:
    yield "<s>", -1
    system, turns = split_system(chat)
    last = max(turn for turn, message in turns if message.role == "user")
    for turn, message in turns:
        if message.role == "assistant":
            yield " ", -1
            yield f"{message.content.strip()}</s>", turn
        else:
            before = f"{system}\n\n" if system is not None and turn == last else ""
            yield f"[INST] {before}{message.content}[/INST]", -1


def alpaca(chat: Conversation) -> Iterator[Piece]:
    system, turns = split_system(chat)
    usual = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    yield f"<s>{usual if system is None else system}\n\n", -1
    for turn, message in turns:
        ours = message.role == "assistant"
        yield "### Response:\n" if ours else "### Instruction:\n", -1
        yield message.content + ("</s>" if ours else ""), turn if ours else -1
        yield "\n\n", -1


def llama_31(chat: Conversation) -> Iterator[Piece]:
    """Meta's own, which puts the tools into the first question."""
    system, turns = split_system(chat)
    yield "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n", -1
    yield "Environment: ipython\n" if chat.tools else "", -1
    yield "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", -1
    yield f"{(system or '').strip()}<|eot_id|>", -1
    if chat.tools:
        yield "<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with a ", -1
        yield "JSON for a function call with its proper arguments that best answers the given prompt.\n\n", -1
        yield 'Respond in the format {"name": function name, "parameters": ', -1
        yield "dictionary of argument name and its value}.", -1
        yield "Do not use variables.\n\n", -1
        yield from ((f"{line}\n\n", -1) for line in tool_lines(chat, 4))
        yield f"{turns[0][1].content.strip()}<|eot_id|>", -1
        turns = turns[1:]
    for turn, message in turns:
        role = "ipython" if message.role == "tool" else message.role
        said = json.dumps(message.content, ensure_ascii=False) if message.role == "tool" else message.content.strip()
        said = call_lines(message, "parameters")[0] if message.tool_calls else said
        yield f"<|start_header_id|>{role}<|end_header_id|>\n\n", -1
        yield f"{said}<|eot_id|>", turn if message.role == "assistant" else -1


def qwen(chat: Conversation) -> Iterator[Piece]:
    """Qwen 2.5's own; neighbouring results of tools share one turn."""
    system, turns = split_system(chat)
    told = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant." if system is None else system
    yield f"<|im_start|>system\n{told}", -1
    if chat.tools:
        yield "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n", -1
        yield "You are provided ", -1
        yield "with function signatures within <tools></tools> XML tags:\n<tools>", -1
        yield from ((f"\n{line}", -1) for line in tool_lines(chat))
        yield "\n</tools>\n\nFor each function call, return a json object with function name and arguments within ", -1
        yield "<tool_call></tool_call> XML tags:\n<tool_call>\n", -1
        yield '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>', -1
    yield "<|im_end|>\n", -1
    before = ""
    for place, (turn, message) in enumerate(turns):
        if message.role == "tool":
            after = turns[place + 1][1].role if place + 1 < len(turns) else ""
            yield "<|im_start|>user" if before != "tool" else "", -1
            yield f"\n<tool_response>\n{message.content}\n</tool_response>", -1
            yield "<|im_end|>\n" if after != "tool" else "", -1
        else:
            calls = [f"<tool_call>\n{line}\n</tool_call>" for line in call_lines(message)]
            said = "\n".join([*([message.content] if message.content or not calls else []), *calls])
            yield f"<|im_start|>{message.role}\n", -1
            yield f"{said}<|im_end|>", turn if message.role == "assistant" else -1
            yield "\n", -1
        before = message.role


OURS: dict[str, tuple[Callable[[Conversation], Iterator[Piece]], bool]] = {
    "chatml": (chatml, True), "llama-3": (llama_3, True), "zephyr": (zephyr, False), "phi-3": (phi_3, False),
    "gemma": (gemma, False), "mistral": (mistral, False), "alpaca": (alpaca, False),
}  # fmt: skip
"""Our templates that can be told apart from what is said by hand, and whether they take tools."""


# --- tokens and losses, by hand -------------------------------------------------------------------------------------


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level vocabularies write each byte with (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


@dataclass(frozen=True)
class Hand:
    """The tokenizers library alone, and how a template writes."""

    core: tokenizers.Tokenizer
    pieces: Callable[[Conversation], Iterator[Piece]]
    alphabet: dict[str, int]
    nfc: bool = False
    """Whether the tokenizer composes characters before it cuts them up."""

    def bytes_of(self, token_id: int) -> bytes:
        special = self.core.get_added_tokens_decoder().get(token_id)
        if special is not None:
            return special.content.encode()
        return bytes(self.alphabet[letter] for letter in self.core.id_to_token(token_id))

    def weights(self, chat: Conversation, train_on: TrainOn) -> tuple[str, list[int], list[float]]:
        """Text, ids, and the loss weight of predicting each: 1, or the message's own, where a byte of a trained turn
        lies in the token."""
        pieces = list(self.pieces(chat))
        text = "".join(piece for piece, _ in pieces)
        seen = [(unicodedata.normalize("NFC", piece) if self.nfc else piece, turn) for piece, turn in pieces]
        turns = [turn for piece, turn in seen for _ in piece.encode()]
        ids = self.core.encode(text, add_special_tokens=False).ids
        raw, last = "".join(piece for piece, _ in seen).encode(), max(turns)
        weights, place = [], 0
        for token_id in ids:
            spelt = self.bytes_of(token_id)
            assert raw[place : place + len(spelt)] == spelt
            turn = max(turns[place : place + len(spelt)])
            place += len(spelt)
            carries = train_on == "all" or (turn >= 0 and (train_on == "assistant" or turn == last))
            own = chat.messages[turn].weight if turn >= 0 else None
            weights.append((1.0 if own is None else own) if carries else 0.0)
        assert place == len(turns)
        return text, ids, [0.0, *weights[1:]]


def loss_by_hand(model: Any, ids: list[int], weights: list[float]) -> float:
    """Token by token, from all logits in double precision."""
    total = 0.0
    logits_TV = model(torch.tensor([ids])).logits[0]
    for place in range(1, len(ids)):
        if weights[place]:
            row = logits_TV[place - 1]
            highest = float(row.max())
            total += weights[place] * (highest + math.log(float((row - highest).exp().sum())) - float(row[ids[place]]))
    return total


def drawn(draw: random.Random, tools: bool) -> Iterator[Conversation]:
    """Chats without end; some answers weigh nothing or a half, some texts hold characters from anywhere in Unicode."""
    while True:
        chat = next(conversations(draw, 1))
        if chat.tools and not tools:
            continue
        messages = []
        silent = draw.random() < 0.7
        for message in chat.messages:
            if message.tool_calls and silent:
                message = replace(message, content="")  # many templates refuse text beside a call
            elif draw.random() < 0.3:
                letters = [chr(draw.choice((draw.randrange(32, 0xD800), draw.randrange(0x1F300, 0x1FAFF))))
                           for _ in range(draw.randint(0, 12))]  # fmt: skip
                message = replace(message, content=message.content + "".join(letters))
            if message.role == "assistant" and draw.random() < 0.2:
                message = replace(message, weight=draw.choice((0.0, 0.5)))
            messages.append(message)
        yield replace(chat, messages=tuple(messages))


@torch.no_grad()
def check(decoder: Decoder, model: Any, renderer: Renderer, hand: Hand, tools: bool, count: int, seed: int) -> None:
    """``count`` chats one by one, then all of them packed together."""
    draw = random.Random(seed)
    packed: list[Weighed] = []
    total, compared, calling = 0.0, 0, 0
    for attempt, chat in enumerate(drawn(draw, tools)):
        assert attempt < 20 * count + 100, f"only {compared} chats of {attempt} are rendered"
        train_on: TrainOn = draw.choice(("assistant", "assistant", "last", "all"))
        try:
            tokens = renderer.render(chat)
        except DataError:
            continue
        text, ids, weights = hand.weights(chat, train_on)
        assert tokens.text == text and tokens.ids.tolist() == ids
        ours = weigh(tokens, chat, train_on)
        assert [place for place, weight in enumerate(weights) if weight] == ours.weights.nonzero()[0].tolist()
        compared += 1
        calling += any(message.tool_calls for message in chat.messages)
        if any(weights):
            batch = make_batch([ours])
            trained = (batch.labels != IGNORED).nonzero()[:, 0]
            assert batch.labels[trained].tolist() == [ids[place + 1] for place in trained.tolist()]
            wanted = loss_by_hand(model, ids, weights)
            loss = sft.loss(decoder, batch, draw.choice((1, 7, 64)))
            assert float(loss.loss_sum) == pytest.approx(wanted, rel=RELATIVE)
            assert loss.num_trained == sum(weight > 0 for weight in weights)
            total += wanted
            packed.append(ours)
        if compared == count:
            break
    assert compared == count and calling >= (max(1, count // 20) if tools else 0)
    halves = (make_batch(packed[::2]), make_batch(packed[1::2]))
    assert sum(float(sft.loss(decoder, half, 64).loss_sum) for half in halves) == pytest.approx(total, rel=RELATIVE)


def both_models(folder: Path, vocab_size: int) -> tuple[Decoder, Any]:
    """One random checkpoint in our decoder, fp32, and in transformers, in double precision."""
    made = oracle("llama", vocab_size=vocab_size)
    made.save_pretrained(folder)
    return load_decoder(folder, base="fp32", compute="fp32", device="cpu"), made.double()


SHORT, LONG = (14, 8), (150, 30)
"""Chats of each of our seven templates, and of each real one: more than 100 together, and more than 1,000."""


@pytest.mark.parametrize("count", [SHORT[0], pytest.param(LONG[0], marks=pytest.mark.long)])
def test_the_loss_of_chats_is_that_of_a_loop_by_hand(count: int, tmp_path: Path) -> None:
    """Our templates, over a vocabulary of which few markers are tokens of their own."""
    pytest.importorskip("transformers")
    folder = write_checkpoint(tmp_path / "checkpoint", context=2048)
    tokenizer, core = Tokenizer.load(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoder, model = both_models(tmp_path / "model", core.get_vocab_size())
    for seed, (name, (pieces, tools)) in enumerate(OURS.items()):
        hand = Hand(core, pieces, byte_alphabet())
        check(decoder, model, make_renderer(tokenizer, name), hand, tools, count, seed)


@pytest.mark.parametrize("count", [SHORT[1], pytest.param(LONG[1], marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("name", "template", "pieces"),
    [("llama3", "meta-llama-Llama-3.1-8B-Instruct", llama_31), ("qwen2.5", "Qwen-Qwen2.5-7B-Instruct", qwen)],
)
def test_with_real_templates_and_tokenizers(
    name: str, template: str, pieces: Any, count: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Llama 3.1 and Qwen 2.5, tools, calls and results included."""
    pytest.importorskip("transformers")
    source = shared("chat_templates", "llama.cpp", f"{template}.jinja")
    folder = real_tokenizer(name, tmp_path_factory)
    tokenizer, core = Tokenizer.load(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoder, model = both_models(tmp_path, core.get_vocab_size())
    hand = Hand(core, pieces, byte_alphabet(), nfc=name == "qwen2.5")
    check(decoder, model, make_renderer(tokenizer, str(source)), hand, True, count, seed=9)
