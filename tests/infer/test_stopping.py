"""Text is let through early, never a part of a stop text, never half a character; whatever the token borders."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers_infer import TEXT

from whippet.chat.tokenizer import Tokenizer
from whippet.infer.stopping import ReplyText


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.load(checkpoint)


def feed(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], ReplyText]:
    reply = ReplyText(tokenizer, stop)
    pieces = []
    for token_id in ids:
        pieces.append(reply.push(token_id))
        if reply.stopped:
            return pieces, reply
    return [*pieces, reply.close()], reply


def bytewise(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a byte: borders inside every character that has more than one."""
    from tokenizers import pre_tokenizers

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    ids = [tokenizer.token_id(letter) for piece, _ in letters for letter in piece]
    assert None not in ids and len(ids) == len(text.encode())
    return [token_id for token_id in ids if token_id is not None]


def test_characters_come_whole(tokenizer: Tokenizer) -> None:
    text = "é→日本🐕 ok 👩‍👩‍👧"
    pieces, reply = feed(tokenizer, bytewise(tokenizer, text))
    assert "".join(pieces) == reply.text == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert pieces[0] == "" and pieces[1] == "é"


def test_bytes_that_are_no_text_are_shown_as_such(tokenizer: Tokenizer) -> None:
    ids = bytewise(tokenizer, "é")
    assert feed(tokenizer, [*bytewise(tokenizer, "a"), ids[0]])[1].text == "a\N{REPLACEMENT CHARACTER}"
    assert feed(tokenizer, [ids[0], *bytewise(tokenizer, "ab")])[1].text == "\N{REPLACEMENT CHARACTER}ab"


@pytest.mark.parametrize("encode", ["tokens", "bytes"])
def test_random_stops_cut_exactly_and_never_leak(tokenizer: Tokenizer, encode: str) -> None:
    random.seed(7)
    for _ in range(150):
        start = random.randrange(len(TEXT) - 30)
        text = TEXT[start : start + 30]
        stops = tuple(
            {text[a : a + random.randint(1, 6)] for a in random.sample(range(28), 2)} | {"never there", text[-1:] + "?"}
        )
        ids = tokenizer.encode(text) if encode == "tokens" else bytewise(tokenizer, text)
        pieces, reply = feed(tokenizer, ids, stops)
        # Tokens come in turn; the first one that completes a stop text decides, then the earliest place.
        shown = next((cut for end in range(len(text) + 1) if (cut := _cut(text[:end], stops)) is not None), text)
        whole = "".join(pieces)
        assert whole == reply.text
        if encode == "bytes":
            assert whole == shown
        assert not any(stop in whole for stop in stops)
        assert text.startswith(whole)
        assert reply.stopped == (whole != text)


def _cut(text: str, stops: tuple[str, ...]) -> str | None:
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else None


def test_what_only_begins_like_a_stop_is_shown_in_the_end(tokenizer: Tokenizer) -> None:
    pieces, reply = feed(tokenizer, bytewise(tokenizer, "runs <|im_en"), ("<|im_end|>",))
    assert reply.text == "runs <|im_en" and not reply.stopped
    assert pieces[-1] == "<|im_en"


def test_nothing_comes_after_a_stop(tokenizer: Tokenizer) -> None:
    reply = ReplyText(tokenizer, ("x",))
    assert reply.push(bytewise(tokenizer, "x")[0]) == ""
    assert reply.stopped and reply.push(bytewise(tokenizer, "y")[0]) == "" and reply.close() == ""


def test_the_space_that_a_tokenizer_drops_at_the_start_is_kept(tmp_path: Path) -> None:
    """Llama 2's tokenizers write a word's space as U+2581, and drop it at the start of what they decode."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    core = tokenizers.Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "▁three": 2, "?": 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    reply = ReplyText(tokenizer, context=tokenizer.encode("one"))
    assert [reply.push(1), reply.push(2)] == [" two", " three"]
    alone = ReplyText(tokenizer)
    assert alone.push(1) == "two"
