"""A loaded model: logits, continuations, chats, streams and batches agree with one another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_infer import CHAT, write_checkpoint

import whippet
from whippet.chat.messages import Conversation, Message
from whippet.errors import DataError, ModelError, UsageError
from whippet.infer.dense import make_dense
from whippet.infer.model import Model
from whippet.infer.sampling import Sampling
from whippet.infer.stream import Stream
from whippet.weights.load import load_decoder

PROMPTS = ["the quick brown", "one", "日本", "lazy dogs and one grey cat, over", "0123"]


def greedy(model: Model, ids: list[int], most: int) -> list[int]:
    """Tokens by the whole text's logits, again for each."""
    start = len(ids)
    while len(ids) < start + most:
        token_id = int(model.logits(ids)[-1].argmax())
        if token_id in model.renderer.stop_ids:
            break
        ids = [*ids, token_id]
    return ids[start:]


def test_logits(model: Model) -> None:
    ids = model.tokenizer.encode("the quick brown")
    logits_TV = model.logits(ids)
    assert logits_TV.shape == (len(ids), 300) and logits_TV.dtype == torch.float32
    assert not logits_TV.requires_grad
    assert torch.equal(model.logits(torch.tensor(ids)), logits_TV)
    torch.testing.assert_close(model.logits(ids[:2]), logits_TV[:2])


@pytest.mark.parametrize(
    ("ids", "said"),
    [([], "at least one token"), ([[1, 2]], "wanted \\[T\\]"), ([300], "wanted 0 to 299"), ([-1], "wanted 0 to 299"),
     ([1] * 129, "129 tokens do not fit in the model's context of 128")],
)  # fmt: skip
def test_logits_refuse(model: Model, ids: list[int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        model.logits(ids)


def test_a_text_is_continued_after_bos(model: Model) -> None:
    ids = model.prompt_ids("the quick")
    assert ids == [0, *model.tokenizer.encode("the quick")]
    assert model.prompt_ids("<s>the quick") == ids
    stream = model.stream("the quick", max_new_tokens=25)
    assert "".join(stream) == stream.text == model.generate("the quick", max_new_tokens=25)
    assert stream.ids == greedy(model, ids, 25)
    # Bytes that are no UTF-8 apart, the text is that of the ids.
    assert stream.text == model.tokenizer.decode(ids + stream.ids)[len(model.tokenizer.decode(ids)) :]


def test_messages_go_through_the_template(model: Model) -> None:
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert model.prompt_ids([{"role": "user", "content": "hi"}]) == model.tokenizer.encode(rendered)
    assert model.prompt_ids([Message("user", "hi")]) == model.tokenizer.encode(rendered)
    assert model.prompt_ids(Conversation((Message("user", "hi"),))) == model.tokenizer.encode(rendered)
    reply = model.chat("hi", temperature=0, max_new_tokens=12)
    assert reply.role == "assistant"
    assert reply.content == model.generate([{"role": "user", "content": "hi"}], max_new_tokens=12).strip()


def test_the_template_s_end_of_turn_ends_a_reply(model: Model) -> None:
    end = model.tokenizer.token_id("<|im_end|>")
    assert model.renderer.stop_ids == {1, end}


def test_only_tools_that_were_offered_are_called(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = {"type": "function", "function": {"name": "get", "parameters": {}}}
    asked = Conversation((Message("user", "x"),), (tool,))
    for name, calls in (("get", 1), ("rm", 0)):
        call = f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>'
        monkeypatch.setattr(Stream, "text", call)
        for reply in (model.chat("x", [tool], max_new_tokens=1), model.chat(asked, max_new_tokens=1)):
            assert len(reply.tool_calls) == calls and reply.content == ("" if calls else call)


def test_a_batch_equals_its_rows(model: Model) -> None:
    prompts = [*PROMPTS, [{"role": "user", "content": "one grey cat"}]]
    for sampling in ({}, {"temperature": 1.2, "top_p": 0.9, "seed": 3}, {"stop": ["a", "th"]}):
        together = model.generate_batch(prompts, max_new_tokens=20, **sampling)
        assert together == [model.generate(prompt, max_new_tokens=20, **sampling) for prompt in prompts]
    assert model.generate_batch([]) == []


def test_a_stop_text_ends_the_reply_and_is_left_out(model: Model) -> None:
    whole = model.generate("the quick", max_new_tokens=40)
    stop = whole[10:13]
    stream = model.stream("the quick", max_new_tokens=40, stop=stop).drain()
    assert stream.text == whole[: whole.index(stop)]
    assert stream.finish == "stop" and stream.cut and len(stream.ids) < 40
    assert model.generate("the quick", max_new_tokens=40, stop=["never", stop]) == stream.text


def test_a_stream_tells_its_figures(model: Model) -> None:
    stream = model.stream("the quick", max_new_tokens=9).drain()
    assert (stream.finish, len(stream.ids), stream.prompt_ids) == ("length", 9, model.prompt_ids("the quick"))
    assert 0 < stream.first_seconds < stream.seconds and stream.tokens_per_second > 0
    broken_off = model.stream("the quick", max_new_tokens=9)
    next(iter(broken_off))
    assert broken_off.finish is None and broken_off.text


def test_a_full_context_is_an_end_and_a_longer_prompt_an_error(model: Model) -> None:
    stream = model.stream("0" * 120, max_new_tokens=50).drain()
    assert (len(stream.prompt_ids) + len(stream.ids), stream.finish) == (128, "length")
    with pytest.raises(UsageError, match="leaves no room in the model's context of 128"):
        model.generate("0 " * 128)


def test_arguments_are_checked(model: Model) -> None:
    with pytest.raises(UsageError, match=r"unknown argument 'temprature'; known: .*temperature"):
        model.generate("x", temprature=1)
    with pytest.raises(UsageError, match="tools need messages"):
        model.generate("x", tools=[{"type": "function"}])


def test_half_a_character_from_the_command_line_is_refused(model: Model) -> None:
    for ask in (model.generate, model.chat):
        with pytest.raises(DataError, match="half of a UTF-16 pair"):
            ask("caf\udce9")


def test_a_base_model_continues_but_does_not_chat(tmp_path: Path) -> None:
    model = whippet.load(write_checkpoint(tmp_path, template=None), base="fp32")
    assert not model.has_template
    assert model.generate("the quick", max_new_tokens=3)
    with pytest.raises(UsageError, match=r"no chat template.*--template.*chatml.*llama-3"):
        model.chat("hi")
    assert whippet.load(tmp_path, template="chatml").chat("hi", max_new_tokens=3).role == "assistant"


def test_a_tokenizer_without_bos_adds_none(tmp_path: Path) -> None:
    model = whippet.load(write_checkpoint(tmp_path, adds_bos=False))
    assert model.prompt_ids("the quick") == model.tokenizer.encode("the quick")
    with pytest.raises(UsageError, match="the prompt is empty"):
        model.generate("")


def test_an_end_that_is_no_single_token_still_ends_a_reply(tmp_path: Path) -> None:
    template = CHAT.replace("<|im_end|>", "[END]")
    model = whippet.load(write_checkpoint(tmp_path, template=template))
    assert model.renderer.stop_strings
    plain = model.generate([{"role": "user", "content": "hi"}], max_new_tokens=30)
    marker = plain[5:8]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT.replace("<|im_end|>", marker)})
    )
    model = whippet.load(tmp_path)
    assert model.renderer.stop_strings == (marker,)
    assert marker not in model.generate([{"role": "user", "content": "hi"}], max_new_tokens=60)


def test_nf4_on_the_cpu_is_dequantised_once_to_the_same_values(checkpoint: Path) -> None:
    held = load_decoder(checkpoint, base="nf4", device="cpu")
    loaded = whippet.load(checkpoint, base="nf4", device="cpu")
    assert loaded.about == "nf4 on cpu, dequantised once"
    assert all(p.nf4 is not None for _, p in held.projections())
    assert all(p.nf4 is None for _, p in loaded.decoder.projections())
    slow = Model(held, loaded.tokenizer, loaded.renderer)
    ids = loaded.prompt_ids("the quick")
    assert torch.equal(slow.logits(ids), loaded.logits(ids))
    assert slow.generate("the quick", max_new_tokens=20) == loaded.generate("the quick", max_new_tokens=20)
    assert slow.generate_batch(PROMPTS, max_new_tokens=9) == loaded.generate_batch(PROMPTS, max_new_tokens=9)
    assert all(p.nf4 is not None and p.weight is None for _, p in held.projections())  # borrowed, and given back
    assert not make_dense(loaded.decoder)


def test_memory_decides_what_auto_means(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert whippet.load(checkpoint, device="cpu").about == "fp32 on cpu"
    monkeypatch.setattr("whippet.infer.defaults.free_bytes", lambda: 1000)
    monkeypatch.setattr("whippet.infer.dense.free_bytes", lambda: 1000)
    assert whippet.load(checkpoint, device="cpu").about == "bf16 on cpu"
    assert whippet.load(checkpoint, base="nf4", device="cpu").about == "nf4 on cpu"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, Sampling(2048, temperature=0.7, top_p=0.9)),
        ({"eos_token_id": 1}, Sampling(2048, temperature=0.7, top_p=0.9)),
        ({"do_sample": False, "temperature": 0.6}, Sampling(2048)),
        ({"temperature": 0.6, "top_p": 0.95}, Sampling(2048, temperature=0.6, top_p=0.95)),
        ({"do_sample": True, "top_k": 20}, Sampling(2048, temperature=1.0, top_k=20)),
    ],
)
def test_a_chat_draws_as_the_checkpoint_says(
    tmp_path: Path, config: dict[str, object] | None, expected: Sampling
) -> None:
    folder = write_checkpoint(tmp_path)
    if config is not None:
        (folder / "generation_config.json").write_text(json.dumps(config))
    assert whippet.load(folder).chat_sampling == expected


@pytest.mark.parametrize("config", ['{"temperature": "hot"}', '{"temperature": -1}', '{"top_p": 0', "[1]"])
def test_a_broken_generation_config_is_named(tmp_path: Path, config: str) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "generation_config.json").write_text(config)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        whippet.load(folder)
