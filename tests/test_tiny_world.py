"""The small world: its answers are right, its held-out questions are held out, and a seed gives one text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from random import Random

import pytest
from tiny_world import held_out_records, training_line
from world import dates, facts, numbers, reading
from world.dialogues import MAKERS, TOPICS, WEIGHTS, dialogue, question
from world.question import Question
from world.words import DAYS, MONTHS, in_words, plural

SCRIPT = Path(__file__).parents[1] / "scripts" / "tiny_world.py"
ALL_MAKERS = [maker for makers in MAKERS.values() for _, maker in makers]


def drawn(maker: object, count: int = 300) -> list[Question]:
    draw = Random(5)
    return [maker(draw) for _ in range(count)]  # type: ignore[operator]


@pytest.mark.parametrize("maker", ALL_MAKERS, ids=lambda maker: maker.__name__)
def test_every_question_is_whole(maker: object) -> None:
    for one in drawn(maker):
        assert one.topic in TOPICS
        for text in (one.ask, one.answer, one.brief):
            assert text.strip() == text and text
            assert "{" not in text.replace('{"', "")


def test_same_content_same_side() -> None:
    """A held-out sum is held out in every wording and in both orders."""
    for a, b in ((37, 45), (12, 7), (80, 3)):
        sides = {numbers.sum_of(Random(seed), *pair).held_out for seed in range(40) for pair in ((a, b), (b, a))}
        assert len(sides) == 1


def test_about_one_in_fifty_is_held_out() -> None:
    shares = [sum(one.held_out for one in drawn(maker, 2000)) / 2000 for maker in (numbers.add, reading.about_one)]
    assert all(0.01 < share < 0.03 for share in shares)


def test_training_text_has_no_held_out_sum() -> None:
    sums = []
    for number in range(400):
        for message in dialogue(Random(f"leak:{number}"))["messages"]:
            sums += re.findall(r"^(\d+) \+ (\d+) = (\d+)\b(?! and)", message["content"])
    assert len(sums) > 100
    for a, b, c in sums:
        assert int(a) + int(b) == int(c)
        low, high = sorted((int(a), int(b)))
        assert not Question("arithmetic", f"add:{low}:{high}", "", "", "").held_out


def test_training_text_asks_no_held_out_question() -> None:
    held_out = {record["messages"][-2]["content"] for record in held_out_records(140, 1) if record["topic"] != "tools"}
    asked = {
        message["content"]
        for number in range(1500)
        for message in dialogue(Random(f"asked:{number}"))["messages"]
        if message["role"] == "user"
    }
    assert not held_out & asked


def test_held_out_records_end_with_their_answer() -> None:
    records = held_out_records(2 * len(TOPICS), 3)
    assert Counter(record["topic"] for record in records) == Counter(dict.fromkeys(TOPICS, 2))
    for record in records:
        *_, asked, answer = record["messages"]
        assert (asked["role"], answer["role"]) == ("user", "assistant")
        assert bool(answer.get("tool_calls")) == (record["topic"] == "tools")
    assert len({record["messages"][-2]["content"] for record in records}) == len(records)


def test_dates_agree_with_the_calendar() -> None:
    for one in drawn(dates.date_shift):
        _, month, day, shift = one.key.split(":")
        then = date(2023, MONTHS.index(month) + 1, int(day)) + timedelta(days=int(shift))
        assert one.brief == f"{then.day} {MONTHS[then.month - 1]}"
    for one in drawn(dates.day_shift):
        shift, day = one.key.partition("|")[0].removeprefix("day:").split(":")
        assert one.brief == DAYS[(DAYS.index(day) + int(shift)) % 7]


def test_sorting_is_sorted() -> None:
    for one in drawn(numbers.sort_numbers):
        found = [int(number) for number in one.answer.split(", ")]
        assert found == sorted(found, reverse=one.key.startswith("down"))
    for one in drawn(numbers.sort_words):
        assert one.answer.split(", ") == sorted(one.answer.split(", "))


def test_units_and_comparisons_are_right() -> None:
    for one in drawn(numbers.units):
        amount, source, target = one.key.partition("|")[0].split(":")
        factors = {(big, small): factor for big, small, factor, _ in numbers.UNITS}
        if (source, target) in factors:
            assert int(one.brief) == int(amount) * factors[source, target]
        else:
            assert int(one.brief) * factors[target, source] == int(amount)
    for one in drawn(numbers.extreme):
        shown = [int(number) for number in one.key.removeprefix("many:").split(":")]
        assert int(one.brief) == (min(shown) if "smallest" in one.ask else max(shown))


def test_reading_answers_stand_in_the_text() -> None:
    for one in [*drawn(reading.about_one), *drawn(reading.codes), *drawn(facts.colour_here)]:
        assert one.brief.removeprefix("the ") in one.ask
    for one in drawn(reading.make_json):
        value = json.loads(one.answer)
        assert all(str(item) in one.ask or in_words(int(item)) in one.ask for item in value.values())


def test_words() -> None:
    assert [in_words(number) for number in (0, 13, 20, 47)] == ["zero", "thirteen", "twenty", "forty-seven"]
    assert [plural(noun) for noun in ("box", "cherry", "monkey", "wolf")] == ["boxes", "cherries", "monkeys", "wolves"]


def test_dialogues_vary() -> None:
    records = [dialogue(Random(f"vary:{number}")) for number in range(300)]
    assert 0.05 < sum("tools" in record for record in records) / 300 < 0.2
    assert sum(record["messages"][0]["role"] == "system" for record in records) > 50
    turns = [sum(message["role"] == "user" for message in record["messages"]) for record in records]
    assert min(turns) == 1 and max(turns) >= 12
    assert set(WEIGHTS) == set(MAKERS)
    assert {question(Random(1), topic).topic for topic in TOPICS} == set(TOPICS)


def test_the_script_writes_the_same_file_in_any_number_of_processes(tmp_path: Path) -> None:
    out = tmp_path / "world.jsonl"
    subprocess.run([sys.executable, SCRIPT, "--count", "30", "--seed", "4", "--out", out], check=True)
    assert out.read_text() == "".join(training_line(4, number) for number in range(30))
    assert training_line(4, 0) != training_line(5, 0)
