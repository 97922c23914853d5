"""Files and folders that appear whole or not at all: after a kill, on a full disk and after a power cut there is either what was
there before or what was written.

What is written grows at a scratch place beside its target, ``.<name>.<8 hex digits>.part``, under the lock ``.<name>.lock``. It is
on the disk before it gets its name, and the name is on the disk when the function returns. The system lets go of a lock when its
process ends, however it ends: so who has the lock removes what killed processes have left. Where the file system has no locks,
nothing is removed. What begins with a dot is no run, pack, corpus or report: :func:`hidden`.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xmod_lab.errors import UserError

log = logging.getLogger(__name__)
_SCRATCH = r"[0-9a-f]{8}\.part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = re.compile(
    r"os error (28|122|27)\b|No space left on device|Disk quota exceeded|File too large"
)
_CANNOT_SYNC = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EROFS,
    errno.EACCES,
    errno.ENOENT,
)  # file systems, rights, files that went meanwhile


class Busy(UserError):
    """Another process has the lock."""


@dataclass(frozen=True)
class Lock:
    """A lock that is held. ``sure``: the file system has locks; ``waited``: another process had it when it was asked for."""

    stream: IO
    sure: bool
    waited: bool


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write the file ``path``, and the folders above it where there are none.

    Raises:
        OSError: naming ``path``, e.g. of a full disk; nothing is left behind.
    """
    try:
        make_folder(path.parent)
        with _scratch(path) as (scratch, _):
            with scratch.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, path)
            sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def build_folder(
    target: Path, write: Callable[[Path], None], *, rebuild: bool = False, wait: bool = True
) -> bool:
    """Let ``write(scratch)`` fill a folder, which then gets the name ``target``. A target that exists is left alone.

    Args:
        rebuild: a target that exists is replaced, unless another process has just made it.
        wait: until another process that makes the same folder has done so, and use that; else that is an error.
    Returns:
        Whether it was written now.
    Raises:
        Busy: another process makes it, and ``wait`` is false. UserError: the folder above cannot be written.
    """
    if target.exists() and not rebuild:
        _tidy(target)
        return False
    with contextlib.ExitStack() as stack:
        try:
            make_folder(target.parent)
            scratch, lock = stack.enter_context(_scratch(target, wait=wait))
            if target.exists() and (lock.waited or not rebuild):
                return False
            scratch.mkdir()
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(
                f"cannot write {target.name} to {target.parent} ({error.strerror}); choose a folder that you can "
                "write to (prepared data: data.folder)"
            ) from error
        write(scratch)
        sync_tree(scratch, mode=scratch.stat().st_mode & 0o666)
        old = _beside(target)
        if rebuild and target.exists():
            os.rename(target, old)
        os.rename(scratch, target)
        sync(target.parent)
        _delete(old)
    return True


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder, which is out of sight at once, whatever happens then. Nothing there is fine."""
    with _scratch(path) as (scratch, _), contextlib.suppress(FileNotFoundError):
        os.rename(path, scratch)
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it, where there are none."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names that a folder is, is on the disk."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise OSError(error.errno, error.strerror, str(path)) from error


def sync_tree(folder: Path, *, mode: int | None = None) -> None:
    """The same for ``folder`` with all that is in it, files before the folder that they are in; links are not followed.

    Args:
        mode: access rights that the files get: some libraries give theirs to one user alone.
    """
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            file = Path(place, name)
            if not file.is_symlink() and file.is_file():
                if mode is not None:
                    file.chmod(mode)
                sync(file)
        sync(Path(place))


def lock(place: Path, *, wait: bool) -> Lock:
    """Lock the file ``place``, made where there is none, until the stream is closed or this process ends, however it ends.

    Raises:
        Busy: another process has it, and ``wait`` is false. UserError: something else than a file is there.
    """
    waited = False
    while True:
        stream = open(
            os.open(place, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666), "r+b", buffering=0
        )
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
            raise UserError(f"{place} is no regular file; remove it, or choose another folder")
        try:  # not flock: forked loader workers would share it
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if not wait:
                stream.close()
                raise Busy(
                    f"another process writes to {place.parent}; wait for it, or choose another folder"
                ) from error
            if not waited:
                log.info(
                    "another process is making %s; waiting for it",
                    place.name.removeprefix(".").removesuffix(".lock"),
                )
            waited = True
            fcntl.lockf(stream, fcntl.LOCK_EX)
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): see that no other process writes there",
                place,
                error.strerror,
            )
            return Lock(stream, False, waited)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(place)):
                return Lock(stream, True, waited)
        stream.close()  # the one who had it has removed the file


@contextlib.contextmanager
def _scratch(target: Path, *, wait: bool = True) -> Iterator[tuple[Path, Lock]]:
    """A name beside ``target``, under its lock. What is at that name afterwards, or was left by others, is deleted."""
    place = target.with_name(f".{target.name}.lock")
    held = lock(place, wait=wait)
    with held.stream:
        try:
            if held.sure:
                for entry in os.listdir(target.parent):
                    if re.fullmatch(re.escape(f".{target.name}.") + _SCRATCH, entry):
                        _delete(target.with_name(entry))
            scratch = _beside(target)
            try:
                yield scratch, held
            finally:
                _delete(scratch)
        finally:
            if held.sure:
                place.unlink(missing_ok=True)


def clear_scratch(folder: Path) -> None:
    """Delete what killed processes have left in ``folder`` and in folders in it."""
    for place, _, files in os.walk(folder):
        for name in files:
            if re.fullmatch(r"\..+\.lock", name, re.DOTALL):
                _tidy(Path(place, name[1:].removesuffix(".lock")))


def _tidy(target: Path) -> None:
    """Delete what killed processes have left beside ``target``: its lock among it, which is removed last."""
    if target.with_name(f".{target.name}.lock").exists():
        with contextlib.suppress(Busy, OSError), _scratch(target, wait=False):
            pass


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hidden(path: Path, below: Path) -> bool:
    """Whether ``path``, or a folder between it and ``below``, begins with a dot: scratch, or what others do not want to be seen."""
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, a quota, or a limit on the size of files is behind ``error``. Libraries in other languages raise errors
    of their own, which say so in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL or _FULL_IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def digest_of(content: bytes) -> str:
    """That of :func:`digest_of_files` of one file with this content."""
    return hashlib.sha256(hashlib.sha256(content).digest()).hexdigest()


def digest_of_files(files: list[Path]) -> str:
    """sha256 over the contents of ``files``, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
