"""Where flash-attn-4 may keep compiled kernels: what lies there is executed, so nobody else may write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from whippet.kernels import attention


def test_a_folder_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caches").mkdir(mode=0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = attention._kernel_folder()
    assert folder == tmp_path / "caches" / "whippet" / "flash-attn-4"
    assert folder.is_dir() and not folder.stat().st_mode & 0o077
    assert attention._kernel_folder() == folder


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_one_that_others_can_write_is_left_alone(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "whippet" / "flash-attn-4"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert attention._kernel_folder() is None


@pytest.mark.parametrize("above", ["whippet", "."])
def test_nor_one_that_others_can_replace(above: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert attention._kernel_folder() is not None
    (tmp_path / above).chmod(0o777)
    assert attention._kernel_folder() is None


def test_no_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert attention._kernel_folder() is None
