"""Names from outside stay in their folder: hostile ones are refused, plain ones pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_paths import hostile, hub_cache

from whippet.errors import DataError, UsageError
from whippet.paths import inside, within


def test_there_are_300_hostile_names() -> None:
    assert len(hostile()) >= 300


def test_hostile_names_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "target"
    folder.mkdir(parents=True)
    passed = []
    for name in hostile():
        try:
            passed.append((name, inside(folder, name)))
        except UsageError as error:
            assert len(str(error)) < 1000
    assert passed == []


@pytest.mark.parametrize("name", ["a", "a/b.json", "model-00001-of-00002.safetensors", "é.txt", ".hidden", "a b/c"])
def test_plain_names_pass(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_links_that_leave_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    for name in ("link", "up/secret"):
        with pytest.raises(UsageError, match="outside"):
            inside(tmp_path / "in", name)
    with pytest.raises(DataError, match=f"in/link leads to {tmp_path}/secret, outside {tmp_path}/in: "):
        within(tmp_path / "in", tmp_path / "in" / "link", error=DataError)
    assert within(tmp_path, tmp_path / "in" / "link") == tmp_path / "in" / "link"


def test_a_linked_folder_is_itself_a_root(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "alias", "x") == tmp_path / "alias" / "x"


@pytest.mark.parametrize("shared", [False, True])
def test_links_of_the_hubs_cache_pass(tmp_path: Path, shared: bool) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "data" / "a.safetensors").write_text("weights")
    for repository in ("models--org--name", "datasets--org--name"):
        snapshot = hub_cache(tmp_path / "cache", repository, source, shared=shared)
        for name in ("config.json", "data/a.safetensors"):
            assert inside(snapshot, name).read_text() == (source / name).read_text()
        assert within(snapshot / "data", snapshot / "data" / "a.safetensors")
        alias = tmp_path / f"alias-{repository}"
        alias.symlink_to(snapshot)
        assert inside(alias, "config.json").read_text() == "{}"


def test_a_snapshot_may_not_reach_past_its_blobs(tmp_path: Path) -> None:
    cache, source = tmp_path / "cache", tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("x")
    for repository in ("models--org--name", "models--org--other"):
        hub_cache(cache, repository, source, shared=False)
    snapshot = next((cache / "models--org--name" / "snapshots").iterdir())
    (cache / "blobs").mkdir()
    (cache / "blobs" / "unmarked").write_text("x")
    other = next((cache / "models--org--other" / "blobs").iterdir())
    (cache / "models--org--name" / "blobs" / "out").symlink_to(tmp_path / "secret")
    targets = (
        "../../../../secret",
        "../../blobs/out",
        "../../../blobs/unmarked",
        f"../../../{other.relative_to(cache)}",
    )
    for number, target in enumerate(targets):
        (snapshot / f"link-{number}").symlink_to(target)
        with pytest.raises(UsageError, match="outside"):
            inside(snapshot, f"link-{number}")


def test_only_the_hubs_layout_has_blobs(tmp_path: Path) -> None:
    """Neither a folder that is merely called snapshots, nor blobs that are a link to somewhere else."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("x")
    for home, blobs in (("plain", False), ("models--org--name", True)):
        snapshot = tmp_path / home / "snapshots" / "1"
        snapshot.mkdir(parents=True)
        if blobs:
            (tmp_path / home / "blobs").symlink_to(tmp_path / "private")
        else:
            (tmp_path / home / "blobs").mkdir()
            (tmp_path / home / "blobs" / "key").write_text("x")
        (snapshot / "config.json").symlink_to("../../blobs/key")
        with pytest.raises(UsageError, match="outside"):
            inside(snapshot, "config.json")
