"""Sources to stores: what is kept, held out, refused, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.data import crew
from whippet.data.examples import content_digest, is_held_out
from whippet.data.formats import parse
from whippet.data.prepare import Prepared, examine, prepare
from whippet.data.report import WIDTH
from whippet.data.store import ExampleStore
from whippet.errors import DataError, UsageError
from whippet.options import DataOptions, Source


def qa(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, records: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def made(renderer: Renderer, *paths: str, max_length: int = 200, seed: int = 0, **options: Any) -> Prepared:
    sources = tuple(Source(path) for path in paths)
    return prepare(DataOptions(sources=sources, **options), renderer, max_length=max_length, seed=seed)


def texts(prepared: ExampleStore, renderer: Renderer) -> list[str]:
    return [renderer.tokenizer.decode(prepared[place].ids.tolist()) for place in range(len(prepared))]


def train(prepared: Prepared) -> ExampleStore:
    assert isinstance(prepared.train, ExampleStore)
    return prepared.train


def test_records_become_examples_with_weights(tmp_path: Path, renderer: Renderer) -> None:
    path = write(tmp_path / "a.jsonl", [qa("one?"), qa("two?", "no, never")])
    prepared = made(renderer, path)
    assert texts(train(prepared), renderer)[1] == (
        "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\nno, never<|im_end|>\n"
    )
    second = train(prepared)[1]
    assert renderer.tokenizer.decode(second.ids[second.weights > 0].tolist()) == "no, never<|im_end|>"
    report = prepared.report
    assert (report.rows, report.kept, report.refused, report.train_examples) == (2, 2, 0, 2)
    assert report.train_tokens == train(prepared).num_tokens
    assert report.trained_tokens == train(prepared).num_trained
    assert prepared.report.sources[0].forms == {"messages": 1}
    assert len(prepared.eval) == 0


def test_bad_records_stop_it_and_are_all_named(tmp_path: Path, renderer: Renderer) -> None:
    records: list[Any] = [qa("q"), {"messages": [{"role": "user", "content": "q"}]}, qa("q2", ""), 7]
    path = write(tmp_path / "a.jsonl", records * 5)
    with open(path, "a") as file:
        file.write('{"messages": [\n')
    with pytest.raises(DataError) as error:
        made(renderer, path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("16 of 21 records cannot be used (--set data.skip_bad=true")
    assert lines[1] == f"  {path}:2: messages: no assistant turn"
    assert lines[2] == f"  {path}:3: messages[1]: empty answer"
    assert lines[3] == f"  {path}:4: wanted an object with keys, met int"
    assert len(lines) == 12 and lines[-1] == "  and 6 more"
    prepared = made(renderer, path, skip_bad=True)
    assert len(train(prepared)) == 5 and prepared.report.refused == 16 and prepared.report.empty_answers == 5
    assert prepared.report.problems[-1].line == 21 and "broken JSON" in prepared.report.problems[-1].reason


def test_one_bad_record_is_one_line(tmp_path: Path, renderer: Renderer) -> None:
    path = write(tmp_path / "a.jsonl", [qa("q"), qa("q", " ")])
    with pytest.raises(DataError) as error:
        made(renderer, path)
    assert str(error.value) == (
        f"{path}:2: messages[1]: empty answer (the only bad record of 2; --set data.skip_bad=true goes on without it)"
    )
    with pytest.raises(DataError, match="no record can be used"):
        made(renderer, write(tmp_path / "b.jsonl", [qa("q", "")]), skip_bad=True)


def test_records_without_a_trained_token_are_named(tmp_path: Path, renderer: Renderer) -> None:
    record = qa("q")
    record["messages"][1]["weight"] = 0
    with pytest.raises(DataError, match=r"a\.jsonl:2: no token of it would be trained"):
        made(renderer, write(tmp_path / "a.jsonl", [qa("q"), record]))


def test_what_the_template_cannot_render_is_a_bad_record(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "strict.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    strict = make_renderer(Tokenizer.load(tiny_model), str(tmp_path / "strict.jinja"))
    record = qa("q")
    record["messages"].insert(0, {"role": "system", "content": "s"})
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*no system"):
        made(strict, write(tmp_path / "a.jsonl", [qa("q"), record]))


def test_without_a_template_conversations_cannot_be_rendered(tmp_path: Path, tiny_model: Path) -> None:
    bare = Renderer(Tokenizer.load(tiny_model), None)
    with pytest.raises(UsageError, match="no chat template"):
        made(bare, write(tmp_path / "a.jsonl", [qa("q")]))
    assert len(train(made(bare, write(tmp_path / "b.jsonl", [{"text": "t"}])))) == 1


def test_long_records_are_counted_and_never_cut(tmp_path: Path, renderer: Renderer) -> None:
    path = write(tmp_path / "a.jsonl", [qa("q"), qa("long " * 60), {**qa("q3")}])
    prepared = made(renderer, path, max_length=60)
    assert [len(train(prepared)), prepared.report.too_long] == [2, 1]
    record = prepared.report.long_records[0]
    assert record.line == 2 and record.tokens == prepared.report.longest > 60
    with pytest.raises(DataError) as error:
        made(renderer, path, max_length=5)
    assert "all 3 usable records are longer than max_length = 5 tokens" in str(error.value)


def test_text_files_become_windows_and_records_of_text_do_not(tmp_path: Path, renderer: Renderer) -> None:
    (tmp_path / "a.txt").write_text("the quick brown whippet\n" * 200)
    prepared = made(renderer, str(tmp_path / "a.txt"), max_length=50)
    store = train(prepared)
    assert len(store) > 10 and int(store.lengths.max()) == 50 and prepared.report.kept == 1
    ids = [store[0].ids.tolist(), *(store[place].ids[1:].tolist() for place in range(1, len(store)))]
    whole = [token for part in ids for token in part]
    assert whole[0] == renderer.tokenizer.bos_id and whole[-1] == renderer.tokenizer.eos_id
    assert renderer.tokenizer.decode(whole[1:-1]) == "the quick brown whippet\n" * 200
    assert store.num_trained == len(whole) - 1
    assert "1 running texts lie in windows" in str(prepared.report)
    with pytest.raises(DataError, match="longer than max_length"):
        made(renderer, write(tmp_path / "b.jsonl", [{"text": "word " * 200}]), max_length=50)


def test_duplicates_are_counted_whatever_their_form(tmp_path: Path, renderer: Renderer) -> None:
    first = write(tmp_path / "a.jsonl", [qa("q", "a"), qa("q", "a"), qa("r", "a")])
    second = write(tmp_path / "b.jsonl", [{"instruction": "q", "input": "", "output": "a"}])
    prepared = made(renderer, first, second)
    assert prepared.report.duplicates == 2 and len(train(prepared)) == 4


def test_the_split_is_stable_and_keeps_duplicates_together(tmp_path: Path, renderer: Renderer) -> None:
    records = [qa(f"q{n % 150}") for n in range(300)]
    path = write(tmp_path / "a.jsonl", records)
    prepared = made(renderer, path, eval_fraction=0.2, seed=4)
    inside, outside = set(texts(train(prepared), renderer)), set(texts(prepared.eval, renderer))
    assert not inside & outside and len(inside) + len(outside) == 150
    assert 15 <= len(outside) <= 45 and len(prepared.eval) == 2 * len(outside)
    assert prepared.report.eval_in_train == 0 and prepared.report.duplicates == 150
    turned = made(renderer, write(tmp_path / "b.jsonl", records[::-1][:200]), eval_fraction=0.2, seed=4)
    assert set(texts(turned.eval, renderer)) <= outside
    assert not set(texts(train(turned), renderer)) & outside
    other = made(renderer, path, eval_fraction=0.2, seed=5)
    assert set(texts(other.eval, renderer)) != outside


def test_evaluation_files(tmp_path: Path, renderer: Renderer) -> None:
    write(tmp_path / "d" / "train.jsonl", [qa("a"), qa("b")])
    write(tmp_path / "d" / "valid.jsonl", [qa("c")])
    held = write(tmp_path / "held.jsonl", [qa("b"), qa("d")])
    folder = str(tmp_path / "d")
    prepared = made(renderer, folder)
    assert len(train(prepared)) == 2 and len(prepared.eval) == 1
    assert [source.use for source in prepared.report.sources] == ["train", "eval"]
    prepared = made(renderer, folder, eval_sources=(Source(held),))
    assert len(train(prepared)) == 2 and len(prepared.eval) == 2
    assert prepared.report.eval_in_train == 1
    said = str(prepared.report)
    assert "1 evaluation records occur among the training records too" in said
    assert "valid.jsonl not read, because data.eval_sources are given" in said.replace("\n    ", " ")


def test_a_split_that_holds_out_nothing_says_so(tmp_path: Path, renderer: Renderer) -> None:
    prepared = made(renderer, write(tmp_path / "a.jsonl", [qa("a")]), eval_fraction=0.01)
    assert "holds out none of so few records" in str(prepared.report)
    held_out = next(q for q in map(str, range(40)) if is_held_out(content_digest(parse(qa(q), "messages")), 0.5, 0))
    with pytest.raises(DataError, match="all 1 examples were held out for evaluation"):
        made(renderer, write(tmp_path / "b.jsonl", [qa(held_out)]), eval_fraction=0.5)


def test_forms_may_differ_between_files_and_be_forced(tmp_path: Path, renderer: Renderer) -> None:
    write(tmp_path / "d" / "a.jsonl", [qa("a")])
    write(tmp_path / "d" / "b.jsonl", [{"instruction": "q", "output": "x", "text": "t"}])
    with pytest.raises(DataError, match=r"b\.jsonl: the records fit more than one form \(alpaca or text\)"):
        made(renderer, str(tmp_path / "d"))
    forced = Source(str(tmp_path / "d" / "b.jsonl"), format="text")
    data = DataOptions(sources=(Source(str(tmp_path / "d" / "a.jsonl")), forced))
    prepared = prepare(data, renderer, max_length=200, seed=0)
    assert [source.forms for source in prepared.report.sources] == [{"messages": 1}, {"text": 1}]
    (tmp_path / "d" / "b.jsonl").unlink()
    write(tmp_path / "d" / "c.jsonl", [{"prompt": "a", "completion": "b"}])
    prepared = made(renderer, str(tmp_path / "d"))
    assert prepared.report.sources[0].forms == {"messages": 1, "prompt_completion": 1}


def test_weights_of_sources_reach_the_store(tmp_path: Path, renderer: Renderer) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", [qa(f"{name}{n}") for n in range(10)]) for name in "ab"]
    data = DataOptions(sources=(Source(paths[0], weight=0.5), Source(paths[1], weight=2)))
    store = train(prepare(data, renderer, max_length=200, seed=0))
    assert np.bincount(store.sources[store.order(0, 0, True)]).tolist() == [5, 20]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_files(tmp_path: Path, renderer: Renderer, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"a\.jsonl: holds no record"):
        made(renderer, str(tmp_path / "a.jsonl"))


def test_half_characters_in_tools_are_found(tmp_path: Path, renderer: Renderer) -> None:
    record = qa("q") | {"tools": [{"name": "f", "description": "\ud800"}]}
    with pytest.raises(DataError, match=r"a\.jsonl:1: holds half of a UTF-16 pair"):
        made(renderer, write(tmp_path / "a.jsonl", [record]))


def test_the_report_as_text_and_json(tmp_path: Path, renderer: Renderer) -> None:
    folder = tmp_path / ("a-folder-with-a-long-name" * 4)
    records = [qa("q" * n) for n in range(1, 80)] + [qa("x", "")] * 12 + [{"messages": 3}] + [qa("y" * 900)]
    path = write(folder / "a.jsonl", records)
    data = DataOptions(sources=(Source(path, weight=2),))
    report = examine(data, renderer, max_length=120, seed=0).report
    for text in (str(report), report.text(every=True)):
        for line in text.splitlines():
            assert len(line) <= WIDTH or str(folder) in line, line
    assert "refused                     13   12 empty answers" in str(report)
    assert "a.jsonl x 2: messages" in str(report) and "and 3 more" in str(report)
    assert "lines 80, 81, 82" in report.text(every=True) and "and 3 more" not in report.text(every=True)
    value = json.loads(json.dumps(report.as_dict()))
    assert value["problems"][0] == {
        "file": path, "line": 80, "record": 80, "field": "messages[1]", "reason": "empty answer"
    }  # fmt: skip
    assert sum(bar["records"] for bar in value["lengths"]) == 80
    assert value["sources"][0]["forms"] == {"messages": 1}
    assert value["empty_answers"] == 12 and 0 < value["trained_share"] < 1
    assert value["long_records"][0]["line"] == 93 and value["max_length"] == 120


class CountedStart:
    """``crew._begin``, which leaves a line in a file for each process."""

    def __init__(self, place: Path) -> None:
        self.place, self.real = place, crew._begin

    def __call__(self, make: crew.Make) -> None:
        with self.place.open("a") as file:
            file.write("one\n")
        self.real(make)


def test_a_broken_line_in_a_process_is_told(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [qa(f"question {number}?") for number in range(60)])
    with open(path, "ab") as file:
        file.write(b"\xff\xfe\n")
    monkeypatch.setattr(crew, "ALONE", 5)
    monkeypatch.setattr(crew, "CHUNK", 10)
    monkeypatch.setattr(crew, "_size", lambda: 2)
    with pytest.raises(DataError, match=r"a\.jsonl:61: not UTF-8"):
        made(renderer, path)


def test_several_processes_make_the_same(tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Any] = [qa(f"question {number}?") if number % 7 else {"messages": []} for number in range(100)]
    path = write(tmp_path / "a.jsonl", records)
    alone = made(renderer, path, skip_bad=True)
    monkeypatch.setattr(crew, "ALONE", 5)
    monkeypatch.setattr(crew, "CHUNK", 10)
    monkeypatch.setattr(crew, "_size", lambda: 3)
    monkeypatch.setattr(crew, "_begin", counted := CountedStart(tmp_path / "started"))
    together = made(renderer, path, skip_bad=True)
    assert len(counted.place.read_text().split()) == 3
    assert texts(train(together), renderer) == texts(train(alone), renderer)
    assert [str(one) for one in together.report.problems] == [str(one) for one in alone.report.problems]
