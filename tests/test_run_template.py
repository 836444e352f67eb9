"""What a recipe and records tell the chat template: the same ids in training, in its samples, and after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_infer import write_checkpoint
from helpers_train import settings

import whippet
from whippet.chat.messages import Conversation, Message
from whippet.errors import DataError, UsageError
from whippet.export import export
from whippet.recipe import make_recipe, read_recipe
from whippet.run import finetune, plan

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if not enable_thinking | default(true) %}no {{ date_string }} {% endif %}{% endif %}"""
"""A date and a thought, as Llama 3 and Qwen 3 have them; both in prompts, so that they show there."""
ASKED = [{"role": "user", "content": "the quick"}]
TOLD = {"enable_thinking": False, "date_string": "1 May"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", template=TEMPLATE, context=512)


def write_rows(path: Path, **more: object) -> Path:
    answer = {"role": "assistant", "content": "brown"}
    rows = [{"messages": [*ASKED, answer], **(more if number % 2 else {})} for number in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_variables_go_with_the_run(checkpoint: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl")
    train = {"max_steps": 1, "sample_every": 1, "sample_prompts": ["the quick"]}
    tables = settings(train=train, data={"template_variables": TOLD})
    run = finetune(checkpoint, data, out=tmp_path / "run", **tables)
    assert read_recipe(run.folder / "recipe.toml").data.template_variables == TOLD
    bare = whippet.load(checkpoint, device="cpu").prompt_ids(ASKED)
    told = run.model().prompt_ids(ASKED)
    assert run.model().tokenizer.decode(told).endswith("<|im_start|>assistant\nno 1 May ") and told != bare
    written = export(run.folder, "hf", tmp_path / "hf", device="cpu").out
    adapter = export(run.folder, "adapter", tmp_path / "a", device="cpu").out
    for place in (run.folder, run.folder / "adapter", written, adapter):
        assert whippet.load(place, device="cpu").prompt_ids(ASKED) == told
    thinking = {"enable_thinking": True}
    assert whippet.load(run.folder, device="cpu", template_variables=thinking).prompt_ids(ASKED) == bare
    assert run.model().prompt_ids(Conversation((Message("user", "the quick"),), (), thinking)) == bare
    card = (written / "README.md").read_text()
    assert 'data.template_variables | enable_thinking = false, date_string = "1 May"' in card


def test_records_tell_their_own(checkpoint: Path, tmp_path: Path) -> None:
    """Every second row thinks; what was trained is what the renderer gives for the row."""
    folder = write_checkpoint(
        tmp_path / "b", template=TEMPLATE.replace("{% endfor %}", "{{ date_string }}{% endfor %}")
    )
    data = write_rows(tmp_path / "d.jsonl", chat_template_kwargs={"date_string": "2 Mai"})
    recipe = settings(data={"template_variables": {"date_string": "1 May"}, "shuffle": False, "packing": False})
    places = {"model.path": folder, "data.sources": [data], "out": tmp_path / "run"}
    made = plan(make_recipe(recipe, places))
    texts = [made.tokenizer.decode(example.ids.tolist()) for example in made.first_examples()]
    assert ["1 May" in text for text in texts] == [True, False] * 4
    assert ["2 Mai" in text for text in texts] == [False, True] * 4


def test_names_that_nothing_reads_leave_no_trace(checkpoint: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl")
    with pytest.raises(UsageError, match="did you mean 'enable_thinking'"):
        finetune(checkpoint, data, out=tmp_path / "run", **settings(data={"template_variables": {"enable_thinkin": 1}}))
    data = write_rows(tmp_path / "d.jsonl", chat_template_kwargs={"reasoning": True})
    said = r"d.jsonl:2: chat_template_kwargs: chat template of the checkpoint reads no variable 'reasoning'"
    with pytest.raises(DataError, match=said):
        finetune(checkpoint, data, out=tmp_path / "run", **settings())
    assert not (tmp_path / "run").exists()
