"""Loss weights against a loop that a person can check, on a thousand conversations."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_chat import conversations

from whippet.chat.messages import Completion, Conversation, Document, Message
from whippet.chat.render import Author, Renderer, Tokens
from whippet.data.batches import IGNORED, make_batch
from whippet.data.weigh import Weighed, weigh, windows
from whippet.errors import DataError


def weighted(conversation: Conversation, draw: random.Random) -> Conversation:
    """The same with a weight on some turns."""
    return replace(
        conversation,
        messages=tuple(
            replace(message, weight=draw.choice((0.0, 0.5, 2.0)))
            if message.role == "assistant" and draw.random() < 0.2
            else message
            for message in conversation.messages
        ),
    )


def by_hand(tokens: Tokens, conversation: Conversation, train_on: str) -> list[float]:
    """The rule, token by token."""
    answers = [int(turn) for turn, author in zip(tokens.turns, tokens.authors, strict=True) if author == 3]
    weights = []
    for place in range(len(tokens.ids)):
        turn, ours = int(tokens.turns[place]), int(tokens.authors[place]) == 3
        weight = 1.0 if train_on == "all" or ours else 0.0
        if train_on == "last" and turn != max(answers):
            weight = 0.0
        own = conversation.messages[turn].weight if ours else None
        if own is not None:
            weight *= own
        weights.append(0.0 if place == 0 else weight)
    return weights


def drawn(renderer: Renderer, number: int) -> list[tuple[Conversation, Tokens]]:
    draw = random.Random(3)
    found = []
    for conversation in conversations(draw, number):
        conversation = weighted(replace(conversation, tools=()), draw)
        try:
            found.append((conversation, renderer.render(conversation)))
        except DataError:  # this template shows no tool calls
            continue
    return found


def test_weights_of_a_thousand_conversations(renderer: Renderer) -> None:
    seen = drawn(renderer, 1500)
    assert len(seen) > 1000
    for conversation, tokens in seen:
        for train_on in ("assistant", "last", "all"):
            weights = weigh(tokens, conversation, train_on).weights  # type: ignore[arg-type]
            assert weights.tolist() == by_hand(tokens, conversation, train_on)


def test_the_loss_of_packed_batches_is_that_of_a_loop(renderer: Renderer) -> None:
    """Labels, shift and borders: the weighted loss of a batch equals one summed over tokens by hand."""
    draw = random.Random(5)
    seen = [(c, t) for c, t in drawn(renderer, 200)]
    for _ in range(20):
        chosen = draw.sample(seen, draw.randint(1, 5))
        examples = [weigh(tokens, conversation, "assistant") for conversation, tokens in chosen]
        batch = make_batch(examples)
        table = torch.rand(400, 400, dtype=torch.float64)  # log-probability of a token after another
        labels = batch.labels
        trained = labels != IGNORED
        got = (table[batch.ids[trained], labels[trained]] * batch.weights[trained].double()).sum()
        wanted = 0.0
        for conversation, tokens in chosen:
            weights = by_hand(tokens, conversation, "assistant")
            for place in range(1, len(tokens.ids)):
                wanted += weights[place] * float(table[tokens.ids[place - 1], tokens.ids[place]])
        assert float(got) == pytest.approx(wanted, rel=1e-12)
        assert batch.weight_sum == pytest.approx(sum(float(e.weights.sum()) for e in examples))


def test_every_end_of_turn_is_trained_and_bos_never(renderer: Renderer) -> None:
    conversation = Conversation(
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    )
    tokens = renderer.render(conversation)
    end = renderer.tokenizer.token_id("<|im_end|>")
    weights = weigh(tokens, conversation, "assistant").weights
    places = [place for place, token in enumerate(tokens.ids.tolist()) if token == end]
    assert [weights[place] for place in places] == [0, 1, 0, 1]
    for example in (Document("some text"), Completion("", "x"), Completion("a", "b")):
        tokens = renderer.render(example)
        assert tokens.ids[0] == renderer.tokenizer.bos_id and tokens.ids[-1] == renderer.tokenizer.eos_id
        for train_on in ("assistant", "last", "all"):
            weights = weigh(tokens, example, train_on).weights  # type: ignore[arg-type]
            assert weights[0] == 0 and weights[-1] == 1


def test_a_prompt_is_not_trained_and_a_document_wholly(renderer: Renderer) -> None:
    tokens = renderer.render(Completion("what is ", "this"))
    weighed = weigh(tokens, Completion("what is ", "this"), "assistant")
    given = tokens.ids[weighed.weights == 0]
    assert renderer.tokenizer.decode(given[1:].tolist()) == "what is "
    assert weigh(renderer.render(Document("abc")), Document("abc"), "assistant").weights.tolist()[1:].count(0.0) == 0


def test_last_without_any_answer_trains_nothing() -> None:
    tokens = Tokens(np.arange(3, dtype=np.int32), np.full(3, Author.USER, np.int8), np.zeros(3, np.int32), "")
    assert weigh(tokens, None, "last").num_trained == 0


@pytest.mark.parametrize("length", [2, 3, 9, 10, 11, 19, 20, 28, 29, 1000])
@pytest.mark.parametrize("most", [2, 3, 10])
def test_windows_predict_every_token_once(length: int, most: int) -> None:
    whole = Weighed(np.arange(length, dtype=np.int32), np.r_[0, np.ones(length - 1)].astype(np.float32))
    parts = windows(whole, most)
    assert all(2 <= len(part) <= most and part.weights[0] == 0 for part in parts)
    predicted = np.concatenate([part.ids[part.weights > 0] for part in parts])
    assert predicted.tolist() == list(range(1, length))
