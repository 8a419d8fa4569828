"""Folders that are written whole; swaps and recovery are in tests/run/test_checkpoint.py."""

import os
from pathlib import Path

import pytest

from finetune.disk import check_folder, whole_folder
from finetune.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    target = tmp_path / "deep" / "page"
    with whole_folder(target, "the page") as new:
        (new / "a").touch()
        assert not target.exists()
    assert names(target) == ["a"]
    with whole_folder(target, "the page") as new:
        (new / "b").touch()
    assert names(target) == ["b"]

    def fail(error):
        with whole_folder(target, "the page") as new:
            (new / "c").touch()
            raise error

    with pytest.raises(UserError, match=r"cannot write the page .*page: No space.*; free some"):
        fail(OSError(28, os.strerror(28)))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert names(target) == ["b"]
    assert names(target.parent) == ["page"]  # nothing is left beside it


def test_the_working_directory_stays_the_folder_that_a_shell_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    with whole_folder(tmp_path, "the page") as new:
        (new / "a").touch()
    assert names(tmp_path) == ["a"]
    assert tmp_path.stat().st_ino == before


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "old")
    with whole_folder(tmp_path / "link", "the page") as new:
        (new / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "old") == ["a"]


def test_a_folder_is_checked_without_being_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    check_folder(tmp_path / "new/deep")
    check_folder(tmp_path)
    assert os.listdir(tmp_path) == ["file"]
    for path in (tmp_path / "file", tmp_path / "file/deep/er"):
        with pytest.raises(UserError, match="file is not a folder; choose another"):
            check_folder(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written to; choose another folder, or make it"):
        check_folder(tmp_path / "new")


def test_a_name_with_a_nul_is_a_message():
    with pytest.raises(UserError, match=r"'a\\x00b': a name cannot hold a NUL; choose another"):
        check_folder(Path("a\0b"))
