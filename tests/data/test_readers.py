"""Every kind of file to rows: places, encodings, broken files."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whippet.data.readers import kind, read_file
from whippet.data.rows import BadRow, Row
from whippet.errors import DataError, MissingExtra

RECORDS = [{"text": "a"}, {"text": "zwei\nLinien"}, {"text": "三 🐕"}]


def rows(path: Path) -> list[Row | BadRow]:
    return list(read_file(path, path.name))


def values(path: Path) -> list[Any]:
    found = rows(path)
    assert not [row for row in found if isinstance(row, BadRow)], found
    return [row.value for row in found if isinstance(row, Row)]


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def as_csv(records: Sequence[dict[str, str]]) -> str:
    return "text\n" + "".join('"' + record["text"].replace('"', '""') + '"\n' for record in records)


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
CONTENTS = {
    "a.jsonl": LINES, "a.ndjson": LINES, "lines.json": LINES, "a.json": json.dumps(RECORDS, indent=1),
    "wrapped.json": json.dumps({"version": 1, "data": RECORDS}), "a.csv": as_csv(RECORDS), "a.tsv": as_csv(RECORDS),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("change", ["plain", "gz", "bom", "crlf", "no last line end"])
def test_all_kinds_give_the_same_records(tmp_path: Path, name: str, change: str) -> None:
    content = CONTENTS[name]
    if change == "crlf" and "csv" not in name and "tsv" not in name:
        content = content.replace("\n", "\r\n")
    if change == "bom":
        content = "\ufeff" + content
    if change == "no last line end":
        content = content.rstrip("\n")
    path = tmp_path / (name + ".gz" if change == "gz" else name)
    assert values(write(path, content)) == RECORDS


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert [row.value for row in found if isinstance(row, Row)] == RECORDS
    assert found[1].where == "a.parquet: record 2"
    write(tmp_path / "b.parquet", b"PAR1 no table PAR1")
    with pytest.raises(DataError, match=r"b\.parquet: not a readable Parquet file"):
        rows(tmp_path / "b.parquet")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'whippet\[data\]'"):
        rows(write(tmp_path / "a.parquet", b"PAR1"))


def test_lines_of_json_lists_are_those_of_an_editor(tmp_path: Path) -> None:
    text = '[\n {"text": "a"},\n\n {"text":\n  "b"}, {"text": "c"}\n,\n{"text": "d"}]\n'
    assert [row.line for row in rows(write(tmp_path / "a.json", text))] == [2, 4, 5, 7]
    text = '\n{"text": "a"}\n\n{"text": "b"}\n'
    assert [(row.line, row.number) for row in rows(write(tmp_path / "a.jsonl", text))] == [(2, 1), (4, 2)]
    assert [(row.line, row.number) for row in rows(write(tmp_path / "b.json", text))] == [(2, 1), (4, 2)]


def test_records_of_a_csv_file_begin_where_their_first_line_does(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "a.csv", 'text,n\n"one\ntwo",1\n\nthree,2\nfour\nfive,5\n'))
    assert [(row.line, type(row)) for row in found] == [(2, Row), (5, Row), (6, BadRow), (7, Row)]
    assert isinstance(found[2], BadRow) and found[2].reason == "1 cells, wanted 2 ('text', 'n')"


def test_other_separators_and_long_cells(tmp_path: Path) -> None:
    long = "x" * 300_000
    assert values(write(tmp_path / "a.csv", f"prompt;completion\na, b;{long}\n")) == [
        {"prompt": "a, b", "completion": long}
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"text": "a"},\n{"text": }]', "a.json:2: broken JSON at column 10"),
        ("a.json", '[{"text": "a"}\n{"text": "b"}]', "a.json:2: broken JSON: met '{', wanted ',' or ']'"),
        ("a.json", '[{"text": "a"},\n\n', "a.json:3: broken JSON"),
        ("a.json", '[{"text": "a"}', "a.json:1: broken JSON: met the end of the file"),
        ("a.json", '[{"text": "a"}]\nx', "a.json:2: broken JSON: 'x' after the end"),
        ("a.json", '{"text": NaN}', "a.json:1: broken JSON: NaN"),
        ("a.json", "[" * 200_000, "a.json:1: broken JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "a.jsonl:2: not UTF-8: byte 0xe9 at byte 11"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "a.jsonl: is UTF-16"),
        ("a.txt", b"caf\xe9", "a.txt:1: not UTF-8: byte 0xe9"),
        ("a.csv", 'text\na\n"b', "a.csv:3: broken CSV"),
        ("a.csv", "text,text\na,b\n", "a.csv:1: the header must name each column once"),
        ("a.xlsx", "x", "a.xlsx: unknown kind of file; known: .json"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError) as error:
        rows(write(tmp_path / name, content))
    assert said in str(error.value)


@pytest.mark.parametrize("cut", [10, 30, -6])
def test_a_cut_gzip_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:cut])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: not a whole gzip file"):
        rows(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="not a whole gzip file"):
        rows(path)


def test_broken_lines_are_told_and_passed_over(tmp_path: Path) -> None:
    text = '{"text": "a"}\n{"text": "b"\n{"text": "c"} {"text": "d"}\n' + '{"a":' * 100_000 + '\n{"text": "e"}\n'
    found = rows(write(tmp_path / "a.jsonl", text))
    assert [type(row) for row in found] == [Row, BadRow, BadRow, BadRow, Row]
    reasons = [row.reason for row in found if isinstance(row, BadRow)]
    assert reasons[0].startswith("broken JSON at column 13")
    assert reasons[1] == "broken JSON at column 14: more than one value in the line"
    assert "nested too deeply" in reasons[2]
    assert found[1].where == "a.jsonl:2"


def test_a_list_called_jsonl_gets_a_hint(tmp_path: Path) -> None:
    first = rows(write(tmp_path / "a.jsonl", '[\n{"text": "a"}\n]\n'))[0]
    assert isinstance(first, BadRow) and "is named .json" in first.reason


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
@pytest.mark.parametrize("content", ["", "\n \n\r\n", "\ufeff"])
def test_empty_files_have_no_rows(tmp_path: Path, name: str, content: str) -> None:
    assert rows(write(tmp_path / name, content)) == []


@pytest.mark.parametrize("record", [{"messages": [{"role": "user"}]}, {"text": "a", "tags": [{"b": 1}]}, {"a": 1}])
def test_an_object_that_is_one_record(tmp_path: Path, record: dict[str, Any]) -> None:
    assert values(write(tmp_path / "a.json", json.dumps(record))) == [record]


def test_text_files_are_documents(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "a.txt", "one\r\n\r\ntwo \n"))
    assert [row.value for row in found if isinstance(row, Row)] == [{"text": "one\n\ntwo \n"}]
    assert isinstance(found[0], Row) and found[0].running_text and found[0].line == 1


@pytest.mark.parametrize("paragraph", ["word " * 200 + "\n\n", "word " * 200 + "\n"])
def test_long_text_files_are_parted_without_loss(
    tmp_path: Path, paragraph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whippet.data.readers.PART", 10_000)
    text = paragraph * 100
    found = [row for row in rows(write(tmp_path / "a.md", text)) if isinstance(row, Row)]
    assert "".join(row.value["text"] for row in found) == text
    assert len(found) > 4 and max(len(row.value["text"]) for row in found) <= 21_100
    lines = text.splitlines(keepends=True)
    assert all("".join(lines[row.line - 1 :]).startswith(row.value["text"]) for row in found if row.line)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=3), max_size=6))
def test_what_json_writes_is_read(records: list[dict[str, Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        for indent in (None, 1):
            assert values(write(path, json.dumps(records, indent=indent))) == records
        path = Path(folder, "a.jsonl")
        assert values(write(path, "".join(json.dumps(record) + "\n" for record in records))) == records


@pytest.mark.parametrize("name", ["A.JSON", "a.jsonl.gz", "x.y.TXT.GZ"])
def test_kinds(name: str) -> None:
    assert kind(Path(name)) is not None


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES * 2000)
    found = [row.progress for row in read_file(path)]
    assert found == sorted(found) and found[0] < 0.6 and found[-1] == 1.0
