"""Digests of files that have not changed are not computed again."""

import os

import pytest

from xmod_lab import files, remembered
from xmod_lab.remembered import digest_of_files, remembering


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read; nothing is known at first."""
    names, plain = [], files.digest_of_file
    monkeypatch.setattr(remembered, "_known", {})
    monkeypatch.setattr(
        remembered, "digest_of_file", lambda file: names.append(file.name) or plain(file)
    )
    return names


def _write(file, content: str, seconds: int) -> None:
    file.write_text(content)
    os.utime(file, (seconds, seconds))


def test_what_has_another_size_time_or_inode_is_read_again(tmp_path, read, monkeypatch):
    file, other = tmp_path / "a", tmp_path / "b"
    _write(file, "one", 1000)
    for _ in range(3):
        with remembering(tmp_path, verify="quick"):
            assert digest_of_files([file]) == files.digest_of_files([file])
        remembered._known.clear()  # as in another process
    assert read == ["a"]
    _write(other, "two", 1000)
    for change in (
        lambda: _write(file, "eno", 1001),
        lambda: _write(file, "more", 1001),
        lambda: other.replace(file),
    ):
        change()
        with remembering(tmp_path, verify="quick"):
            assert digest_of_files([file]) == files.digest_of_files([file])
    assert read == ["a"] * 4
    with remembering(tmp_path, verify="full"):
        digest_of_files([file])
    assert read == ["a"] * 5


def test_what_was_changed_a_moment_ago_is_not_remembered(tmp_path, read):
    (tmp_path / "a").write_text("one")
    for _ in range(2):
        digest_of_files([tmp_path / "a"])
    assert read == ["a", "a"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": [1, 2, 3, "x"]}'])
def test_a_damaged_memory_is_no_memory(tmp_path, read, content):
    _write(tmp_path / "a", "one", 1000)
    (tmp_path / ".digests.json").write_text(content)
    with remembering(tmp_path, verify="quick"):
        digest_of_files([tmp_path / "a"])
    assert read == ["a"] and len(remembered._known) == 1
