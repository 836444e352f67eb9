"""Sources to files: folders, held-out files, hub ids, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_paths import hub_cache

from whippet.data.sources import Found, find, is_hub_id, read_rows
from whippet.errors import DataError
from whippet.options import Source


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')
    return folder


def names(found: Found, folder: Path) -> tuple[list[str], list[str], list[str]]:
    def cut(name: str) -> str:
        return name.removeprefix(f"{folder}/")

    return (
        [cut(file.name) for file in found.train],
        [cut(file.name) for file in found.held_out],
        [cut(name) for name in found.ignored],
    )


def test_a_folder_is_read_in_order_and_says_what_it_leaves(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a/2.json", "a/1.csv.gz", "README.md", "notes.pdf", ".hidden.jsonl", ".git/x.jsonl",
         "dataset_info.json", "LICENSE.txt", "c.md")  # fmt: skip
    train, held_out, ignored = names(find(Source(str(tmp_path))), tmp_path)
    assert train == ["a/1.csv.gz", "a/2.json", "b.jsonl", "c.md"]
    assert held_out == []
    assert ignored == ["LICENSE.txt", "README.md", "dataset_info.json", "notes.pdf"]


@pytest.mark.parametrize(
    ("files", "train", "held_out"),
    [
        (("train.jsonl", "valid.jsonl", "test.jsonl"), ["train.jsonl"], ["test.jsonl", "valid.jsonl"]),
        (("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
         ["data/train-00000-of-00001.parquet"], ["data/test-00000-of-00001.parquet"]),
        (("a.json", "validation/a.json"), ["a.json"], ["validation/a.json"]),
        (("test.jsonl",), ["test.jsonl"], []),
        (("testimony.jsonl", "evaluate.jsonl"), ["evaluate.jsonl", "testimony.jsonl"], []),
    ],
)  # fmt: skip
def test_held_out_files(tmp_path: Path, files: tuple[str, ...], train: list[str], held_out: list[str]) -> None:
    assert names(find(Source(str(make(tmp_path, *files)))), tmp_path)[:2] == (train, held_out)


def test_a_file_by_name_is_trained_on_whatever_it_is_called(tmp_path: Path) -> None:
    path = make(tmp_path, "test.jsonl") / "test.jsonl"
    assert [file.path for file in find(Source(str(path))).train] == [path]
    assert [row.where for row in read_rows(Source(str(path)))] == [f"{path}:1"]


def test_missing_and_unfit_paths(tmp_path: Path) -> None:
    for path, said in (
        (str(tmp_path / "none.jsonl"), "none.jsonl: no such file or folder"),
        ("nowhere.jsonl", "nowhere.jsonl: no such file or folder"),
        ("data/nowhere.jsonl", "no such file or folder"),
        (str(make(tmp_path / "x", "a.pdf")), "no file with records (.json"),
        (str(make(tmp_path / "x", "a.pdf") / "a.pdf"), "a.pdf: unknown kind of file"),
    ):
        with pytest.raises(DataError) as error:
            find(Source(path))
        assert said in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it is empty"):
        find(Source(str(tmp_path / "empty")))


def test_what_may_be_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path, "data/a.jsonl"))
    assert is_hub_id("tatsu-lab/alpaca")
    for path in ("alpaca", "data/typo", "./a/b", "/a/b", "~/a", "a/b/c", "a/b.jsonl", "../a/b", "a b/c", "-a/b"):
        assert not is_hub_id(path), path


def test_a_hub_id_is_downloaded_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[object] = []

    def snapshot_download(hub_id: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, repo_type))
        assert "*.parquet" in allow_patterns and not any("py" in pattern for pattern in allow_patterns)
        return str(make(tmp_path, "train.jsonl", "test.jsonl"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = find(Source("owner/name"))
    assert asked == [("owner/name", "dataset")]
    assert [file.name for file in found.train] == ["owner/name/train.jsonl"]


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.jsonl", "sub/b.jsonl")
    make(tmp_path / "out", "c.jsonl")
    (folder / "notes.pdf").symlink_to(tmp_path / "none.pdf")
    (folder / "again.jsonl").symlink_to("sub/b.jsonl")
    (folder / "sub-again").symlink_to("sub")
    (folder / ".hidden").symlink_to(tmp_path / "out")
    train, _, ignored = names(find(Source(str(folder))), folder)
    assert (train, ignored) == (["a.jsonl", "again.jsonl", "sub/b.jsonl"], ["notes.pdf"])
    for link, target in (
        ("passwd.txt", Path("/etc/passwd")),
        ("sub/c.jsonl", tmp_path / "out" / "c.jsonl"),
        ("valid.jsonl", Path("../out/c.jsonl")),
        ("gone.jsonl", tmp_path / "gone"),
        ("more", tmp_path / "out"),
    ):
        (folder / link).symlink_to(target)
        with pytest.raises(DataError, match=f"in/{link} leads to /.*, outside {folder}: ") as error:
            find(Source(str(folder)))
        assert "\n" not in str(error.value)
        (folder / link).unlink()


def test_a_link_that_is_named_is_followed(tmp_path: Path) -> None:
    make(tmp_path / "real", "a.jsonl")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.jsonl").symlink_to(tmp_path / "real" / "a.jsonl")
    for path in (tmp_path / "folder", tmp_path / "in" / "file.jsonl"):
        assert [row.value for row in read_rows(Source(str(path)))] == [{"text": "a"}]


@pytest.mark.parametrize("shared", [False, True])
def test_links_of_the_hubs_cache_are_followed(tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    source = make(tmp_path / "source", "data/train.jsonl", "test.jsonl")
    hub_cache(tmp_path / "cache", "datasets--org--name", source, shared=shared)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert [row.where for row in read_rows(Source("org/name"))] == ["org/name/data/train.jsonl:1"]


def test_a_hub_id_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="owner/none-such: no such file or folder, and not to be had from the hub"):
        find(Source("owner/none-such"))
