"""The embedded model: an ordinary checkpoint within its size, that answers what its card says; and how it is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import SMOKE, write_random_checkpoint
from tiny_export import MOST_BYTES, export_bf16
from tiny_score import count, is_right, replies
from tiny_world import held_out_records, training_line

from whippet.chat.messages import Message, ToolCall
from whippet.chat.render import Author, Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.demo import MODEL
from whippet.infer.model import Model, load
from whippet.infer.prompts import conversation
from whippet.weights.hf import CheckpointReader

needs_model = pytest.mark.skipif(
    not (MODEL / "model.safetensors").is_file(),
    reason="whippet/assets/tiny is not there; scripts/train_tiny.py makes it",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(folder, [training_line(3, number) for number in range(600)], SMOKE, 0)
    return folder


@pytest.fixture(scope="module")
def renderer(made: Path) -> Renderer:
    return make_renderer(Tokenizer.load(made), None)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load(MODEL, base="bf16", compute="fp32", device="cpu")


def test_tokenizer_reads_digits_and_bytes(renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    assert tokenizer.vocab_size == SMOKE.vocab_size
    assert len(tokenizer.encode("4711")) == 4
    for text in ("Grüße 你好 👩‍👧 \x00\x7f", "  two  spaces\n\n", "<tool_call>{}</tool_call>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.stop_ids == {tokenizer.token_id("<|end|>")}
    assert tokenizer.pad_id not in tokenizer.stop_ids


def test_template_marks_what_the_assistant_says(renderer: Renderer) -> None:
    """Loss falls on answers, calls and what ends them, in every kind of record."""
    for number in range(60):
        record = json.loads(training_line(6, number))
        asked = conversation(record["messages"], record.get("tools"))
        tokens = renderer.render(asked)
        ours = renderer.tokenizer.decode([int(i) for i in tokens.ids[tokens.authors == Author.ASSISTANT]])
        ends = ours.split("<|end|>")
        answers = [message for message in asked.messages if message.role == "assistant"]
        assert len(ends) == len(answers) + 1 and ends[-1] == ""
        assert [renderer.parse(end).tool_calls for end in ends[:-1]] == [one.tool_calls for one in answers]
        assert [end for end in ends[:-1] if "<tool_call>" not in end] == [one.content for one in answers if one.content]


def test_prompt_begins_the_training_text(renderer: Renderer) -> None:
    record = held_out_records(14, 1)[-1]
    asked = conversation(record["messages"], record.get("tools"))
    whole = renderer.render(asked).ids.tolist()
    prompt = renderer.prompt_ids(asked.messages[:-1], asked.tools)
    assert whole[: len(prompt)] == prompt


def test_template_as_transformers_renders_it(made: Path, renderer: Renderer) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(made)
    for number in range(20):
        record = json.loads(training_line(8, number))
        asked = conversation(record["messages"], record.get("tools"))
        ids = oracle.apply_chat_template(record["messages"], tools=record.get("tools"), return_dict=False)
        assert renderer.render(asked).ids.tolist() == ids


def test_a_late_system_message_is_refused(renderer: Renderer) -> None:
    with pytest.raises(ValueError, match="role system can only be the first"):
        renderer.prompt_ids([Message("user", "hi"), Message("system", "no")])


def test_export_is_bf16_and_rounds_once(made: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    out.mkdir()
    (run / "model").symlink_to(made)
    export_bf16(run, out, SMOKE)
    with CheckpointReader(made) as before, CheckpointReader(out) as after:
        assert set(before.tensors) == set(after.tensors)
        for name in after.tensors:
            assert torch.equal(after.tensor(name), before.tensor(name).bfloat16())
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_score_compares_texts_and_calls(made: Path) -> None:
    call = ToolCall("set_timer", {"minutes": 3})
    assert is_right(Message("assistant", "12"), Message("assistant", "12"))
    assert not is_right(Message("assistant", "12 "), Message("assistant", "12"))
    assert is_right(Message("assistant", "", (call,)), Message("assistant", "", (call,)))
    assert not is_right(Message("assistant", "", ()), Message("assistant", "", (call,)))
    records = [{"topic": "units"}, {"topic": "units"}, {"topic": "dates"}]
    right, wrong = (Message("assistant", "1"),) * 2, (Message("assistant", "2"), Message("assistant", "1"))
    counted = count([right, wrong, right], records)
    assert counted["by_topic"]["units"] == {"asked": 2, "right": 1}
    assert counted["exact_match"] == pytest.approx(2 / 3)


@needs_model
def test_size_and_recorded_score() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= MOST_BYTES
    score = json.loads((MODEL / "score.json").read_text())
    assert score["held_out"]["asked"] >= 500 and score["held_out"]["exact_match"] >= 0.9
    for key in ("script", "command", "seed", "steps", "device", "versions"):
        assert score[key]


@needs_model
def test_it_answers(tiny: Model) -> None:
    """A draw of the held-out questions; the long test asks all of them."""
    records = held_out_records(42, 1)
    right = sum(is_right(*pair) for pair in replies(tiny, records))
    assert right >= 0.85 * len(records)


@needs_model
@pytest.mark.long
def test_it_answers_as_the_card_says(tiny: Model) -> None:
    score = json.loads((MODEL / "score.json").read_text())
    records = held_out_records(score["held_out"]["asked"], score["seed"])
    found = count(replies(tiny, records), records)
    assert found["exact_match"] == pytest.approx(score["held_out"]["exact_match"], abs=0.01)


@needs_model
def test_logits_as_transformers_computes_them(tiny: Model) -> None:
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = tiny.prompt_ids([Message("user", "What is 37 + 45?")])
    with torch.no_grad():
        wanted = oracle(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(tiny.logits(ids), wanted, atol=2e-4, rtol=0)
