"""Names from outside stay in their folder: hostile ones are refused, plain ones pass."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from whippet.errors import UsageError
from whippet.paths import inside

CLIMBS = ["..", "../x", "a/../../x", "a/b/../../../x", "./../x", "a/..", "a/.. /x", "a/.../x", "a/. ./x", "..\\x"]
ROOTS = ["/etc/passwd", "//host/share", "/", "\\\\host\\share\\x", "\\x", "C:x", "C:\\x", "c:/x", "\\\\?\\C:\\x"]
ODD = ["", "\x00", "a\x00b", "~", "~root/x", "x" * 5000, "a/" * 600 + "x", "file:///etc/passwd", "a:b", "x\\..\\..\\y"]
PREFIXES = ["", "a/", "model/", "./", "a/b/c/", "é/", "x.safetensors/", "0/", "a a/", "-/"]


def hostile() -> list[str]:
    made = [
        prefix + name
        for prefix, name in itertools.product(PREFIXES, [*CLIMBS[:3], "../../../../x", "../../../../../etc"])
    ]
    made += [
        name + suffix for name, suffix in itertools.product(ROOTS, ["", "x", ".safetensors", "/..", "/a/b", "\x00"])
    ]
    made += [text.replace("/", "\\") for text in made if "/" in text and ".." in text]
    made += [f"{'../' * n}{tail}" for n, tail in itertools.product(range(1, 30), ["x", "tmp/x", "etc/passwd"])]
    made += [f"a{sep}..{sep}..{sep}{n}" for sep, n in itertools.product(["/", "\\", "//"], range(20))]
    return sorted({*made, *CLIMBS, *ROOTS, *ODD} - {"a/..", "a/../x", "model/../x"})


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
    assert inside(tmp_path / "in", "link", roots=(tmp_path,))


def test_a_linked_folder_is_itself_a_root(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "alias", "x") == tmp_path / "alias" / "x"
