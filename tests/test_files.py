"""Files and folders appear whole or not at all. Real processes, and a real disk that is full."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from xmod_lab.cli.exit_status import exit_status_of
from xmod_lab.errors import UserError
from xmod_lab.files import Busy, build_folder, clear_scratch, is_full, lock, remove, write_whole
from xmod_lab.languages.folders import new_folder

LEFT = ".0123abcd.part"  # as a killed process leaves it


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("whole")


@pytest.fixture
def other_process():
    """``other_process(work)`` runs ``work`` in a fork until it calls the function it is given."""
    children = []

    def start(work) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                work(lambda: os.write(writing, b"."))
            finally:
                os._exit(0)
        children.append(child)
        os.read(reading, 1)

    yield start
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    "write", [lambda path: write_whole(path, b"new"), lambda path: build_folder(path, fill)]
)
def test_what_killed_processes_have_left_goes_with_the_next_that_writes_there(tmp_path, write):
    for name in (f".name{LEFT}", f".other{LEFT}"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for name in (".name.lock", ".other.lock"):
        (tmp_path / name).write_text("")
    write(tmp_path / "name")
    assert names(tmp_path) == {"name", f".other{LEFT}", ".other.lock"}
    (tmp_path / ".name.lock").write_text("")
    clear_scratch(tmp_path.parent)
    assert names(tmp_path) == {"name"}


def test_a_folder_that_fails_leaves_nothing_and_one_that_is_replaced_is_gone(tmp_path):
    with pytest.raises(ZeroDivisionError):
        build_folder(tmp_path / "name", lambda scratch: fill(scratch) or 1 / 0)
    assert not names(tmp_path)
    assert build_folder(tmp_path / "name", fill) and not build_folder(
        tmp_path / "name", lambda _: pytest.fail("anew")
    )
    build_folder(
        tmp_path / "name", lambda scratch: (scratch / "other").write_text("x"), rebuild=True
    )
    assert names(tmp_path) == {"name"} and names(tmp_path / "name") == {"other"}
    remove(tmp_path / "name")
    assert not names(tmp_path)


def test_files_get_the_rights_that_the_folder_has(tmp_path):
    build_folder(
        tmp_path / "name",
        lambda s: save_file({"x": torch.zeros(2)}, s / "x") or (s / "x").chmod(0o600),
    )
    assert (tmp_path / "name" / "x").stat().st_mode & 0o777 == (
        tmp_path / "name"
    ).stat().st_mode & 0o666


def test_of_two_that_make_one_folder_one_makes_it_and_the_other_waits_or_says_so(
    tmp_path, other_process
):
    def make(begun) -> None:
        build_folder(
            tmp_path / "name", lambda s: (begun(), subprocess.run(["sleep", "0.5"]), fill(s))
        )

    other_process(make)
    with pytest.raises(UserError, match="another process is writing"):
        new_folder(tmp_path / "name", fill)
    assert not build_folder(
        tmp_path / "name", lambda _: pytest.fail("it was made a moment ago"), rebuild=True
    )
    assert (tmp_path / "name" / "sub" / "file").read_text() == "whole" and names(tmp_path) == {
        "name"
    }


def test_without_locks_the_folder_that_is_there_first_stays(tmp_path, monkeypatch):
    def no_locks(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def meanwhile(scratch) -> None:
        build_folder(tmp_path / "name", fill)
        (scratch / "other").write_text("later")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    assert not build_folder(tmp_path / "name", meanwhile)
    assert [p.name for p in (tmp_path / "name").iterdir()] == ["sub"]
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == [tmp_path / "name"]


def test_a_lock_ends_with_its_process(tmp_path, other_process):
    other_process(
        lambda begun: (
            lock(tmp_path / "lock", wait=False),
            begun(),
            os.kill(os.getpid(), signal.SIGSTOP),
        )
    )
    with pytest.raises(Busy):
        lock(tmp_path / "lock", wait=False)


def test_a_lock_that_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UserError, match="is not a regular file"):
        lock(tmp_path / "lock", wait=True)


def test_a_full_disk_leaves_what_was_there_and_nothing_else(small_disk):
    disk = small_disk(64)
    write_whole(disk / "file", b"old")
    build_folder(disk / "folder", fill)
    large = torch.zeros(100_000)
    for write in (
        lambda: write_whole(disk / "file", bytes(400_000)),
        lambda: build_folder(
            disk / "folder", lambda s: save_file({"x": large}, s / "x"), rebuild=True
        ),
        lambda: build_folder(disk / "new", lambda s: (s / "x").write_bytes(bytes(400_000))),
    ):
        with pytest.raises(Exception) as caught:
            write()
        assert is_full(caught.value), caught.value
    assert names(disk) == {"file", "folder"} and (disk / "file").read_bytes() == b"old"
    assert (disk / "folder" / "sub" / "file").read_text() == "whole"


def test_a_full_disk_has_one_message_whatever_met_it(small_disk, capsys):
    disk = small_disk(64)
    for write in (
        lambda: save_file({"x": torch.zeros(100_000)}, disk / "x"),
        lambda: Tokenizer(models.WordLevel({str(i): i for i in range(20_000)})).save(
            str(disk / "x")
        ),
        lambda: (disk / "x").write_bytes(bytes(400_000)),
    ):
        assert exit_status_of(write) == 2
        err = capsys.readouterr().err
        assert "the disk is full. What was saved is whole" in err and err.count("\n") == 1
        (disk / "x").unlink(missing_ok=True)


def test_what_the_system_says_of_a_file_is_a_message(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert (
        exit_status_of((tmp_path / "file" / "below").mkdir)
        == exit_status_of((tmp_path / "none").read_bytes)
        == 2
    )
    assert capsys.readouterr().err.count("error: no access to") == 2


def test_only_a_full_disk_is_one():
    assert is_full(OSError(28, "No space left on device")) and is_full(
        RuntimeError("x (os error 28)")
    )
    assert not is_full(OSError(13, "Permission denied")) and not is_full(ValueError("os error 280"))
